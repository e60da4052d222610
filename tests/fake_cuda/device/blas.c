// Matrix products: each is counted, and logged with its shape, types and mode of computation.
#include "device.h"
#include <cublasLt.h>
#include <cublas_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OK CUBLAS_STATUS_SUCCESS
#define VERSION 130401

static cublasMath_t math_mode;

static const char *type_name(int type) {
    switch (type) {
        case CUDA_R_32F: return "fp32";
        case CUDA_R_16F: return "fp16";
        case CUDA_R_16BF: return "bf16";
        case CUDA_R_64F: return "fp64";
        default: return "?";
    }
}

static cublasStatus_t product(long m, long n, long k, int from, int to, int compute, long batch) {
    count(COUNT_launches, 1);
    count(COUNT_products, 1);
    log_line("product m=%ld n=%ld k=%ld batch=%ld from=%s to=%s compute=%d math=%d", m, n, k, batch,
             type_name(from), type_name(to), compute, (int)math_mode);
    return OK;
}

cublasStatus_t cublasCreate_v2(cublasHandle_t *h) { return *h = (void *)0x5000, OK; }
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t m) { return math_mode = m, OK; }
cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *m) { return *m = math_mode, OK; }
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *m) { return *m = 0, OK; }
cublasStatus_t cublasGetVersion_v2(cublasHandle_t h, int *v) { return *v = VERSION, OK; }
size_t cublasLtGetVersion(void) { return VERSION; }

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *A, cudaDataType a, int lda, const void *B,
                            cudaDataType b, int ldb, const void *beta, void *C, cudaDataType c, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    return product(m, n, k, a, c, compute, 1);
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                                          int n, int k, const void *alpha, const void *A, cudaDataType a, int lda,
                                          long long sa, const void *B, cudaDataType b, int ldb, long long sb,
                                          const void *beta, void *C, cudaDataType c, int ldc, long long sc,
                                          int batch, cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    return product(m, n, k, a, c, compute, batch);
}
cublasStatus_t cublasSgemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                             const float *alpha, const void *A, cudaDataType a, int lda, const void *B,
                             cudaDataType b, int ldb, const float *beta, void *C, cudaDataType c, int ldc) {
    return product(m, n, k, a, c, -1, 1);
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                              const float *alpha, const float *A, int lda, const float *B, int ldb,
                              const float *beta, float *C, int ldc) {
    return product(m, n, k, CUDA_R_32F, CUDA_R_32F, -1, 1);
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                                         int n, int k, const float *alpha, const float *A, int lda, long long sa,
                                         const float *B, int ldb, long long sb, const float *beta, float *C,
                                         int ldc, long long sc, int batch) {
    return product(m, n, k, CUDA_R_32F, CUDA_R_32F, -1, batch);
}
cublasStatus_t cublasSgemv_v2(cublasHandle_t h, cublasOperation_t t, int m, int n, const float *alpha,
                              const float *A, int lda, const float *x, int ix, const float *beta, float *y,
                              int iy) {
    return product(m, n, 1, CUDA_R_32F, CUDA_R_32F, -1, 1);
}

// cublasLt
typedef struct {
    int type;
    uint64_t rows, columns;
    int batch;
} Layout;
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType s) {
    int *kept = malloc(sizeof(int));
    *kept = compute;
    return *d = (void *)kept, OK;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return free(d), OK; }
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
    Layout *kept = malloc(sizeof *kept);
    *kept = (Layout){type, rows, columns, 1};
    return *layout = (void *)kept, OK;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return free(layout), OK; }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t size) {
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) ((Layout *)layout)->batch = *(int *)value;
    return OK;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) { return *p = (void *)0x6000, OK; }
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to,
                                              cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t *result, int *found) {
    memset(result, 0, sizeof *result);
    return *found = 1, OK;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t from, const void *B, cublasLtMatrixLayout_t other,
                              const void *beta, const void *C, cublasLtMatrixLayout_t added, void *D,
                              cublasLtMatrixLayout_t to, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_size, cudaStream_t s) {
    const Layout *a = (const Layout *)from, *c = (const Layout *)to;
    long k = a->rows == c->rows ? a->columns : a->rows;
    return product(c->rows, c->columns, k, a->type, c->type, *(int *)d, c->batch);
}
