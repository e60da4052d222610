// The functions of libcudart and libcublas that return something. Streams and events are always done, kernels
// are counted, and all that is copied from the device reads as zeros. Device memory is addresses without memory,
// so that the host cannot read it. device_runs.py makes a stub of every other function that torch needs.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OK cudaSuccess
#define MEMORY_BYTES 150754820096ULL  // 143,771 MiB, as an H200 reports
#define FREE_BYTES (MEMORY_BYTES - (600ULL << 20))  // the driver takes the rest
#define GRANULE (2ULL << 20)
#define MAX_RANGES 65536

// Counters, by their names in the report.
#define COUNTERS(X) \
    X(launches) X(to_device_pageable) X(stream_waits) X(event_waits) X(device_waits) X(reserved_bytes_peak)
#define AS_ENUM(name) COUNT_##name,
#define AS_NAME(name) #name,
enum Counter { COUNTERS(AS_ENUM) NUM_COUNTERS };
static const char *names[] = {COUNTERS(AS_NAME)};
static long values[NUM_COUNTERS];

static cudaError_t count(enum Counter counter) {
    __atomic_fetch_add(&values[counter], 1, __ATOMIC_RELAXED);
    return OK;
}

// All counters as a JSON object. The text is overwritten by the next call.
const char *fake_cuda_counts(void) {
    static char text[1024];
    size_t used = 0;
    for (int i = 0; i < NUM_COUNTERS; i++)
        used += snprintf(text + used, sizeof text - used, "%c\"%s\": %ld", i ? ',' : '{', names[i], values[i]);
    snprintf(text + used, sizeof text - used, "}");
    return text;
}

// Memory.
typedef struct {
    char *start;
    size_t size;
    int on_host, mapped;
} Range;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Range ranges[MAX_RANGES];
static int num_ranges;
static size_t used;

static cudaError_t add_range(void *start, size_t size, int on_host, int mapped) {
    pthread_mutex_lock(&lock);
    int fits = start != MAP_FAILED && num_ranges < MAX_RANGES && (on_host || used + size <= FREE_BYTES);
    if (fits) ranges[num_ranges++] = (Range){start, size, on_host, mapped};
    if (fits && !on_host) used += size;
    if ((long)used > values[COUNT_reserved_bytes_peak]) values[COUNT_reserved_bytes_peak] = used;
    pthread_mutex_unlock(&lock);
    return fits ? OK : cudaErrorMemoryAllocation;
}

static cudaError_t reserve(void **to, size_t size, int on_host) {
    size = (size / GRANULE + 1) * GRANULE;
    int protection = on_host ? PROT_READ | PROT_WRITE : PROT_NONE;
    *to = mmap(0, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return add_range(*to, size, on_host, 1);
}

static cudaError_t release(void *start) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_ranges; i++)
        if (ranges[i].start == start) {
            if (!ranges[i].on_host) used -= ranges[i].size;
            if (ranges[i].mapped) munmap(start, ranges[i].size);
            ranges[i] = ranges[--num_ranges];
            break;
        }
    pthread_mutex_unlock(&lock);
    return OK;
}

static enum cudaMemoryType type_of(const void *address) {
    enum cudaMemoryType type = cudaMemoryTypeUnregistered;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_ranges; i++)
        if ((char *)address >= ranges[i].start && (char *)address < ranges[i].start + ranges[i].size)
            type = ranges[i].on_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    pthread_mutex_unlock(&lock);
    return type;
}

cudaError_t cudaMalloc(void **p, size_t size) { return reserve(p, size, 0); }
cudaError_t cudaFree(void *p) { return release(p); }
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) { return reserve(p, size, 1); }
cudaError_t cudaFreeHost(void *p) { return release(p); }
cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags) { return add_range(p, size, 1, 0); }
cudaError_t cudaHostUnregister(void *p) { return release(p); }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    return *total = MEMORY_BYTES, *available = FREE_BYTES - used, OK;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p) {
    enum cudaMemoryType type = type_of(p);
    *attributes = (struct cudaPointerAttributes){.type = type};
    if (type != cudaMemoryTypeUnregistered) attributes->devicePointer = (void *)p;
    if (type == cudaMemoryTypeHost) attributes->hostPointer = (void *)p;
    return OK;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind k, cudaStream_t s) {
    enum cudaMemoryType target = type_of(to), source = type_of(from);
    if (target == cudaMemoryTypeDevice && source == cudaMemoryTypeUnregistered) count(COUNT_to_device_pageable);
    if (target != cudaMemoryTypeDevice && source == cudaMemoryTypeDevice) memset(to, 0, size);
    if (target != cudaMemoryTypeDevice && source != cudaMemoryTypeDevice) memmove(to, from, size);
    return OK;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    return count(COUNT_stream_waits), cudaMemcpyAsync(to, from, size, kind, NULL);
}

// The device. FAKE_CUDA_CAPABILITY=7 makes it an older one.
static int capability(void) {
    const char *text = getenv("FAKE_CUDA_CAPABILITY");
    return text ? atoi(text) : 9;
}
cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, OK; }
cudaError_t cudaGetDevice(int *d) { return *d = 0, OK; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    static const struct {
        int attribute, value;
    } known[] = {
        {cudaDevAttrMaxThreadsPerBlock, 1024}, {cudaDevAttrMaxBlockDimX, 1024},
        {cudaDevAttrMaxBlockDimY, 1024}, {cudaDevAttrMaxBlockDimZ, 64},
        {cudaDevAttrMaxGridDimX, 2147483647}, {cudaDevAttrMaxGridDimY, 65535},
        {cudaDevAttrMaxGridDimZ, 65535}, {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
        {cudaDevAttrWarpSize, 32}, {cudaDevAttrMaxRegistersPerBlock, 65536},
        {cudaDevAttrMultiProcessorCount, 132}, {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
        {cudaDevAttrComputeCapabilityMinor, 0}, {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
        {cudaDevAttrMaxRegistersPerMultiprocessor, 65536}, {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
    };
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability() : 1;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == (int)attribute) *value = known[i].value;
    return OK;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    *p = (struct cudaDeviceProp){.name = "NVIDIA H200 (computes nothing)", .totalGlobalMem = MEMORY_BYTES};
    p->major = capability(), p->multiProcessorCount = 132, p->warpSize = 32, p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->l2CacheSize = 62914560, p->memPitch = 2147483647, p->textureAlignment = 512;
    p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = 1;
    return OK;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return OK;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { return *can = 0, OK; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, OK; }
cudaError_t cudaDeviceSynchronize(void) { return count(COUNT_device_waits); }

// Streams and events.
static void *handle(void) {
    static size_t next = 0x1000;
    return (void *)__atomic_add_fetch(&next, 16, __ATOMIC_RELAXED);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return *s = handle(), OK; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { return *s = handle(), OK; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { return *p = 0, OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return count(COUNT_stream_waits); }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    return *status = cudaStreamCaptureStatusNone, OK;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *num_nodes) {
    return *status = cudaStreamCaptureStatusNone, OK;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) { return call(data), OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { return *e = handle(), OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return count(COUNT_event_waits); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { return *ms = 1.0f, OK; }

// Kernels.
void **__cudaRegisterFatBinary(void *binary) {
    static void *registered[4];
    return registered;
}
char __cudaInitModule(void **h) { return 1; }
cudaError_t __cudaGetKernel(void **kernel, const void *function) { return *kernel = (void *)function, OK; }
cudaError_t __cudaLaunchKernel(void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) {
    return count(COUNT_launches);
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) {
    return count(COUNT_launches);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) {
    return count(COUNT_launches);
}
typedef struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} Call;
static __thread Call calls[16];
static __thread int num_calls;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    return calls[num_calls++] = (Call){grid, block, shared, stream}, 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    Call call = calls[--num_calls];
    *grid = call.grid, *block = call.block, *shared = call.shared, *(cudaStream_t *)stream = call.stream;
    return OK;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    *a = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 64, .ptxVersion = 90};
    return a->binaryVersion = 90, a->maxDynamicSharedSizeBytes = 232448, OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t shared) {
    return *n = 1024 / (threads ? threads : 1) + 1, OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
    return *n = 2, OK;
}
const char *cudaGetErrorString(cudaError_t e) { return "error of a device that computes nothing"; }
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) {
    static char memory[4096];
    return *p = memory, OK;
}
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *function = nothing;
    if (result) *result = cudaDriverEntryPointSuccess;
    return OK;
}

// Matrix products.
#define PRODUCT(name) \
    int name(void) { return count(COUNT_launches); }
#define HANDLE(name) \
    int name(void **h) { return *h = handle(), 0; }
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasLtMatmul)
HANDLE(cublasCreate_v2)
HANDLE(cublasLtMatmulDescCreate)
HANDLE(cublasLtMatrixLayoutCreate)
HANDLE(cublasLtMatmulPreferenceCreate)
int cublasGetMathMode(void *h, int *mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { return *mode = 0; }
int cublasGetVersion_v2(void *h, int *version) { return *version = 130401, 0; }
size_t cublasLtGetVersion(void) { return 130401; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *to, void *p, int wanted,
                                   void *result, int *found) {
    return *found = 1, 0;
}
