// The driver, libcuda.so.1, as far as Triton and torch's allocator use it.
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK CUDA_SUCCESS
#define CONTEXT ((CUcontext)0x9000)
#define KERNEL_NAME 200

static void *in_runtime(const char *name) { return dlsym(RTLD_DEFAULT, name); }
static size_t next_handle = 0x20000;
static void *handle(void) { return (void *)__atomic_add_fetch(&next_handle, 16, __ATOMIC_RELAXED); }

CUresult cuDriverGetVersion(int *v) { return *v = CUDA_VERSION, OK; }
CUresult cuDeviceGet(CUdevice *d, int ordinal) { return *d = ordinal, OK; }
CUresult cuDeviceGetCount(int *n) {
    const char *text = getenv("FAKE_CUDA_GPUS");
    return *n = text ? atoi(text) : 1, OK;
}
CUresult cuDeviceGetName(char *s, int n, CUdevice d) { return snprintf(s, n, "NVIDIA H200"), OK; }
CUresult cuDeviceTotalMem(size_t *n, CUdevice d) { return *n = 150754820096ULL, OK; }
// The attributes have the numbers that they have in the runtime.
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice d) {
    int (*get)(int *, int, int) = in_runtime("cudaDeviceGetAttribute");
    *value = 1;
    return get ? get(value, attribute, d) : OK;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) { return *flags = 0, *active = 1, OK; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { return *c = CONTEXT, OK; }
CUresult cuCtxGetCurrent(CUcontext *c) { return *c = CONTEXT, OK; }
CUresult cuCtxGetDevice(CUdevice *d) {
    int (*get)(int *) = in_runtime("cudaGetDevice");
    return *d = 0, get ? get(d) : OK;
}
CUresult cuGetErrorString(CUresult e, const char **s) { return *s = "error", OK; }
CUresult cuGetErrorName(CUresult e, const char **s) { return *s = "error", OK; }

// Kernels that Triton has compiled: a function is its name.
CUresult cuModuleLoadData(CUmodule *m, const void *image) { return *m = handle(), OK; }
CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *o, void **v) {
    return *m = handle(), OK;
}
CUresult cuModuleLoad(CUmodule *m, const char *path) { return *m = handle(), OK; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
    char *kept = malloc(KERNEL_NAME);
    snprintf(kept, KERNEL_NAME, "%s", name);
    return *f = (CUfunction)kept, OK;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
    *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 64
             : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                                    : 0;
    return OK;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream s, void **parameters, void **extra) {
    void (*launched)(const char *) = in_runtime("fake_cuda_triton_launched");
    if (launched) launched((const char *)f);
    return OK;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
    return cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, 0, parameters, extra);
}
CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned shared, CUstream s, void **parameters) {
    return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, s, parameters, NULL);
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int threads, size_t shared) {
    return *n = 2, OK;
}
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { return *n = 66, OK; }

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr p) {
    memset(value, 0, 8);
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)value = p;
    return OK;
}
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *status) { return *status = 0, OK; }
CUresult cuGetProcAddress(const char *name, void **p, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *result) {
    if (result) *result = 0;
    return *p = dlsym(RTLD_DEFAULT, name), OK;
}

// Memory of torch's expandable segments: addresses are taken when they are reserved, and count as used.
CUresult cuMemAddressReserve(CUdeviceptr *p, size_t size, size_t alignment, CUdeviceptr a, unsigned long long f) {
    void *(*reserve)(size_t) = in_runtime("device_reserve");
    return *p = (CUdeviceptr)(reserve ? reserve(size) : NULL), *p ? OK : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAddressFree(CUdeviceptr p, size_t size) {
    void (*release)(void *) = in_runtime("device_release");
    if (release) release((void *)p);
    return OK;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle *h, size_t size, const CUmemAllocationProp *p,
                     unsigned long long f) {
    return *h = (CUmemGenericAllocationHandle)handle(), OK;
}
CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *p,
                                       CUmemAllocationGranularity_flags f) {
    return *bytes = 2 << 20, OK;
}
