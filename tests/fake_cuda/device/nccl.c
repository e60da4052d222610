// Collectives between the processes of one machine, by files in a folder.
// Every process waits for the others, as NCCL does, but in the call itself. Sums are not computed.
#include "device.h"
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK ncclSuccess
#define PATIENCE 300  // seconds to wait for another process

typedef struct {
    int size, rank;
    long operations, splits;
    volatile int aborted;
    char name[64];
} Group;

static void file_of(const Group *group, const char *operation, int rank, char *path, size_t size) {
    const char *folder = getenv("FAKE_CUDA_EXCHANGE");
    snprintf(path, size, "%s/%s_%s_%d", folder ? folder : "/dev/shm", group->name, operation, rank);
}

// Hands `size` bytes at `from` on the device to the others.
static void give(Group *group, const char *operation, const void *from, size_t size) {
    char path[512], part[520];
    file_of(group, operation, group->rank, path, sizeof path);
    snprintf(part, sizeof part, "%s.part", path);
    FILE *file = fopen(part, "wb");
    if (!file) return;
    if (size && size <= KEPT_BYTES) {
        void *bytes = malloc(size);
        device_read(bytes, from, size);
        fwrite(bytes, 1, size, file);
        free(bytes);
    }
    fclose(file);
    rename(part, path);
}

// Waits for what `rank` hands over, and keeps it at `to` on the device.
static ncclResult_t take(Group *group, const char *operation, int rank, void *to, size_t size) {
    char path[512];
    file_of(group, operation, rank, path, sizeof path);
    for (long tries = 0; access(path, R_OK); tries++) {
        if (group->aborted) return ncclSystemError;
        if (tries > PATIENCE * 1000L) {
            fprintf(stderr, "rank %d waits for rank %d in %s\n", group->rank, rank, operation);
            abort();
        }
        usleep(1000);
    }
    FILE *file = to && size <= KEPT_BYTES ? fopen(path, "rb") : NULL;
    if (file) {
        void *bytes = calloc(1, size ? size : 1);
        size_t read = fread(bytes, 1, size, file);
        if (read == size) device_write(to, bytes, size);
        free(bytes);
        fclose(file);
    }
    return OK;
}

static size_t bytes_of(ncclDataType_t type, size_t n) {
    switch (type) {
        case ncclInt8: case ncclUint8: return n;
        case ncclFloat16: case ncclBfloat16: return 2 * n;
        case ncclInt64: case ncclUint64: case ncclFloat64: return 8 * n;
        default: return 4 * n;
    }
}

// Counts a collective and names it: the same name in every process.
static void begin(Group *group, enum Counter kind, const char *name, size_t size, char *operation) {
    count(kind, 1);
    count(COUNT_collective_bytes, size);
    log_line("collective %s %zu", name, size);
    sprintf(operation, "%ld", group->operations++);
}

static ncclResult_t wait_for_all(Group *group, const char *operation, const void *from, size_t size) {
    give(group, operation, from, size);
    for (int rank = 0; rank < group->size; rank++) {
        ncclResult_t result = take(group, operation, rank, NULL, 0);
        if (result != OK) return result;
    }
    return OK;
}

ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c,
                           cudaStream_t st) {
    char operation[32];
    begin((Group *)c, COUNT_all_reduce, "all_reduce", bytes_of(t, n), operation);
    return wait_for_all((Group *)c, operation, s, 0);
}
ncclResult_t ncclReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, int root,
                        ncclComm_t c, cudaStream_t st) {
    char operation[32];
    begin((Group *)c, COUNT_reduce, "reduce", bytes_of(t, n), operation);
    return wait_for_all((Group *)c, operation, s, 0);
}
ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c,
                               cudaStream_t st) {
    char operation[32];
    begin((Group *)c, COUNT_reduce_scatter, "reduce_scatter", bytes_of(t, n), operation);
    return wait_for_all((Group *)c, operation, s, 0);
}
ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st) {
    Group *group = (Group *)c;
    size_t size = bytes_of(t, n);
    char operation[32];
    begin(group, COUNT_all_gather, "all_gather", size, operation);
    ncclResult_t result = wait_for_all(group, operation, s, size);
    for (int rank = 0; rank < group->size && result == OK; rank++)
        result = take(group, operation, rank, (char *)r + rank * size, size);
    return result;
}
ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                           cudaStream_t st) {
    Group *group = (Group *)c;
    size_t size = bytes_of(t, n);
    char operation[32];
    begin(group, COUNT_broadcast, "broadcast", size, operation);
    ncclResult_t result = wait_for_all(group, operation, s, size);
    return result == OK ? take(group, operation, root, r, size) : result;
}
ncclResult_t ncclBcast(void *s, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st) {
    return ncclBroadcast(s, s, n, t, root, c, st);
}

static Group *new_group(int size, int rank, const char *name) {
    Group *group = calloc(1, sizeof *group);
    group->size = size, group->rank = rank;
    strncpy(group->name, name, sizeof group->name - 1);
    return group;
}
ncclResult_t ncclGetVersion(int *version) { return *version = NCCL_VERSION_CODE, OK; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int made;
    memset(id, 0, sizeof *id);
    snprintf((char *)id, sizeof *id, "nccl_%d_%d", getpid(), made++);
    return OK;
}
ncclResult_t ncclCommInitRank(ncclComm_t *c, int size, ncclUniqueId id, int rank) {
    return *c = (ncclComm_t)new_group(size, rank, (char *)&id), OK;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *c, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
    return ncclCommInitRank(c, size, id, rank);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t *c, int size, int rank, int n, ncclUniqueId *ids,
                                      ncclConfig_t *config) {
    return ncclCommInitRank(c, size, ids[0], rank);
}
ncclResult_t ncclCommSplit(ncclComm_t c, int color, int key, ncclComm_t *made, ncclConfig_t *config) {
    Group *group = (Group *)c;
    char name[96];
    snprintf(name, sizeof name, "%.40s.%ld", group->name, group->splits++);
    return *made = (ncclComm_t)new_group(group->size, group->rank, name), OK;  // of the same processes
}
ncclResult_t ncclCommCount(const ncclComm_t c, int *n) { return *n = ((Group *)c)->size, OK; }
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *rank) { return *rank = ((Group *)c)->rank, OK; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error) { return *error = OK, OK; }
ncclResult_t ncclCommAbort(ncclComm_t c) { return ((Group *)c)->aborted = 1, OK; }
// NCCL documents that ending a communicator regularly waits for all its processes.
ncclResult_t ncclCommDestroy(ncclComm_t c) { return wait_for_all((Group *)c, "end", NULL, 0); }
const char *ncclGetErrorString(ncclResult_t r) { return "error of a device that computes nothing"; }
const char *ncclGetLastError(ncclComm_t c) { return "none"; }
ncclResult_t ncclCommRegister(const ncclComm_t c, void *p, size_t n, void **handle) { return *handle = p, OK; }
