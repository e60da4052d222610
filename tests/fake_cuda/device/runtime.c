// The CUDA runtime without a device: kernels are counted and do nothing; streams and events are always done.
#define _GNU_SOURCE
#include "device.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK cudaSuccess
#define KERNELS (1 << 19)

// Names of kernels, by the address of their host function.
typedef struct {
    const void *function;
    const char *name;
} Kernel;
static Kernel kernels[KERNELS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static Kernel *slot(const void *function) {
    size_t at = ((uintptr_t)function >> 3) * 11400714819323198485ULL >> 45;
    while (kernels[at % KERNELS].function && kernels[at % KERNELS].function != function) at++;
    return &kernels[at % KERNELS];
}

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    return handle;
}
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
void __cudaRegisterVar(void **h, char *a, char *b, const char *c, int d, size_t e, int f, int g) {}
char __cudaInitModule(void **h) { return 1; }
void __cudaRegisterFunction(void **h, const char *function, char *device_function, const char *name, int limit,
                            void *a, void *b, void *c, void *d, int *e) {
    pthread_mutex_lock(&lock);
    *slot(function) = (Kernel){function, name};
    pthread_mutex_unlock(&lock);
}

static cudaError_t launched(const void *function) {
    pthread_mutex_lock(&lock);
    const char *name = slot(function)->name;
    pthread_mutex_unlock(&lock);
    count(COUNT_launches, 1);
    log_line("kernel %s", name ? name : "?");
    return OK;
}

cudaError_t __cudaGetKernel(void **kernel, const void *function) { return *kernel = (void *)function, OK; }
cudaError_t __cudaLaunchKernel(void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) {
    return launched(f);
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) {
    return launched(f);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) { return launched(f); }

typedef struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} Call;
static __thread Call calls[16];
static __thread int num_calls;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    calls[num_calls++] = (Call){grid, block, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    Call call = calls[--num_calls];
    *grid = call.grid, *block = call.block, *shared = call.shared;
    *(cudaStream_t *)stream = call.stream;
    return OK;
}

// The device.
static __thread int current_device;
static int capability(void) {  // the major number; FAKE_CUDA_CAPABILITY=7 makes it an older device
    const char *text = getenv("FAKE_CUDA_CAPABILITY");
    return text ? atoi(text) : 9;
}
cudaError_t cudaGetDeviceCount(int *n) {
    const char *text = getenv("FAKE_CUDA_GPUS");
    return *n = text ? atoi(text) : 1, OK;
}
cudaError_t cudaGetDevice(int *d) { return *d = current_device, OK; }
cudaError_t cudaSetDevice(int d) { return current_device = d, OK; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    static const struct {
        int attribute, value;
    } known[] = {
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxBlockDimX, 1024},
        {cudaDevAttrMaxBlockDimY, 1024},
        {cudaDevAttrMaxBlockDimZ, 64},
        {cudaDevAttrMaxGridDimX, 2147483647},
        {cudaDevAttrMaxGridDimY, 65535},
        {cudaDevAttrMaxGridDimZ, 65535},
        {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxRegistersPerBlock, 65536},
        {cudaDevAttrMultiProcessorCount, 132},
        {cudaDevAttrL2CacheSize, 62914560},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
        {cudaDevAttrComputeCapabilityMinor, 0},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
        {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
        {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
    };
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability() : 1;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == (int)attribute) *value = known[i].value;
    return OK;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NVIDIA H200 (computes nothing)");
    p->major = capability(), p->minor = 0, p->multiProcessorCount = 132, p->totalGlobalMem = MEMORY_BYTES;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32, p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->l2CacheSize = 62914560, p->memoryBusWidth = 6144, p->memPitch = 2147483647, p->textureAlignment = 512;
    p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = p->cooperativeLaunch = 1;
    p->asyncEngineCount = 3, p->managedMemory = 1, p->pciBusID = device + 1;
    return OK;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:%02x:00.0", device + 1);
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
cudaError_t cudaDeviceSynchronize(void) { return count(COUNT_device_waits, 1), OK; }

// Streams and events.
static void *handle(void) {
    static size_t next = 0x1000;
    return (void *)__atomic_add_fetch(&next, 16, __ATOMIC_RELAXED);
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = handle(), OK; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return *s = handle(), OK; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { return *s = handle(), OK; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return OK; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { return *p = 0, OK; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return count(COUNT_stream_waits, 1), OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return OK; }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t call, void *data, unsigned f) {
    return call(s, OK, data), OK;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) { return call(data), OK; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = handle(), OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { return *e = handle(), OK; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return OK; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return count(COUNT_event_waits, 1), OK; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { return *ms = 1.0f, OK; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return OK; }

// Graphs.
static int capturing;
static unsigned long long captures;
static enum cudaStreamCaptureStatus capture_status(void) {
    return capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    return *status = capture_status(), OK;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *num_nodes) {
    *status = capture_status();
    if (id) *id = captures;
    if (graph) *graph = (void *)0x77;
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (num_nodes) *num_nodes = 0;
    return OK;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
    return capturing = 1, captures++, OK;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { return capturing = 0, *g = handle(), OK; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
    return *e = handle(), OK;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
    return *e = handle(), OK;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) { return *n = 1, OK; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    return count(COUNT_graph_launches, 1), log_line("graph"), OK;
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t *o, void *p, cudaHostFn_t d, unsigned r, unsigned f) {
    return *o = handle(), OK;
}

// Functions and errors.
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 64, a->ptxVersion = a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 232448;
    return OK;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return OK; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t shared) {
    return *n = 1024 / (threads ? threads : 1) + 1, OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
    return *n = 2, OK;
}
cudaError_t cudaGetLastError(void) { return OK; }
cudaError_t cudaPeekAtLastError(void) { return OK; }
const char *cudaGetErrorString(cudaError_t e) { return "error of a device that computes nothing"; }
const char *cudaGetErrorName(cudaError_t e) { return "error"; }
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) {
    static char memory[4096];
    return *p = memory, OK;
}
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
    *function = driver ? dlsym(driver, name) : NULL;
    if (!*function) *function = nothing;
    if (result) *result = cudaDriverEntryPointSuccess;
    return OK;
}
