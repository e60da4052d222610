// Memory: addresses without memory behind them, so that the host cannot read them, and a table of contents.
#define _GNU_SOURCE
#include "device.h"
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CONTEXT_BYTES (600ULL << 20)  // taken by the driver
#define GRANULE (2ULL << 20)
#define MAX_RANGES 65536
#define BUCKETS 65536

typedef struct {
    char *start;
    size_t size;
    int on_host, mapped;
} Range;
typedef struct Content {
    struct Content *next;
    const void *start;
    size_t size;
    char bytes[];
} Content;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Range ranges[MAX_RANGES];
static int num_ranges;
static size_t used;
static Content *contents[BUCKETS];

static Content **bucket(const void *start) {
    return &contents[((uintptr_t)start >> 4) * 11400714819323198485ULL >> 48];
}

static void forget(const void *start) {
    for (Content **at = bucket(start); *at; at = &(*at)->next)
        if ((*at)->start == start) {
            Content *gone = *at;
            *at = gone->next;
            free(gone);
            return;
        }
}

// The contents at `start` if exactly this range was copied there, else NULL.
static const Content *find_content(const void *start, size_t size) {
    const Content *content = *bucket(start);
    while (content && content->start != start) content = content->next;
    return content && content->size == size ? content : NULL;
}

void device_write(void *to, const void *from, size_t size) {
    pthread_mutex_lock(&lock);
    forget(to);
    Content *content = size <= KEPT_BYTES ? malloc(sizeof *content + size) : NULL;
    if (content) {
        *content = (Content){*bucket(to), to, size};
        memcpy(content->bytes, from, size);
        *bucket(to) = content;
    }
    pthread_mutex_unlock(&lock);
}

void device_read(void *to, const void *from, size_t size) {
    pthread_mutex_lock(&lock);
    const Content *content = find_content(from, size);
    if (content) memcpy(to, content->bytes, size);
    else memset(to, 0, size);
    pthread_mutex_unlock(&lock);
}

static void copy_on_device(void *to, const void *from, size_t size) {
    pthread_mutex_lock(&lock);
    const Content *content = find_content(from, size);
    pthread_mutex_unlock(&lock);
    if (content && to != from) {
        char *bytes = malloc(size);
        device_read(bytes, from, size);
        device_write(to, bytes, size);
        free(bytes);
    } else if (!content) {
        pthread_mutex_lock(&lock);
        forget(to);
        pthread_mutex_unlock(&lock);
    }
}

static void forget_range(const Range *range) {
    for (size_t i = 0; i < BUCKETS; i++)
        for (Content **at = &contents[i]; *at;) {
            const char *start = (*at)->start;
            if (start >= range->start && start < range->start + range->size) forget(start);
            else at = &(*at)->next;
        }
}

static const Range *find_range(const void *address) {
    for (int i = 0; i < num_ranges; i++)
        if ((char *)address >= ranges[i].start && (char *)address < ranges[i].start + ranges[i].size)
            return &ranges[i];
    return NULL;
}

static int add_range(void *start, size_t size, int on_host, int mapped) {
    if (num_ranges == MAX_RANGES) return 0;
    ranges[num_ranges++] = (Range){start, size, on_host, mapped};
    return 1;
}

static void *reserve(size_t size, int on_host) {
    size = (size + GRANULE - 1) / GRANULE * GRANULE;
    size = size ? size : GRANULE;
    int protection = on_host ? PROT_READ | PROT_WRITE : PROT_NONE;
    void *start = NULL;
    pthread_mutex_lock(&lock);
    if (on_host || used + size <= MEMORY_BYTES - CONTEXT_BYTES) {
        start = mmap(0, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED || !add_range(start, size, on_host, 1)) start = NULL;
    }
    if (start && on_host) count(COUNT_pinned_bytes, size);
    if (start && !on_host) {
        used += size;
        count(COUNT_reserved_bytes, size);
        count_peak(COUNT_reserved_bytes_peak, used);
    }
    pthread_mutex_unlock(&lock);
    return start;
}

static void release(void *start) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_ranges; i++)
        if (ranges[i].start == start) {
            if (!ranges[i].on_host) {
                used -= ranges[i].size;
                count(COUNT_reserved_bytes, -(long)ranges[i].size);
                forget_range(&ranges[i]);
            }
            if (ranges[i].mapped) munmap(start, ranges[i].size);
            ranges[i] = ranges[--num_ranges];
            break;
        }
    pthread_mutex_unlock(&lock);
}

void *device_reserve(size_t size) { return reserve(size, 0); }
void device_release(void *start) { release(start); }

static cudaError_t allocated(void *start, void **to) {
    *to = start;
    return start ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMalloc(void **p, size_t size) { return allocated(reserve(size, 0), p); }
cudaError_t cudaMallocAsync(void **p, size_t size, cudaStream_t s) { return cudaMalloc(p, size); }
cudaError_t cudaMallocManaged(void **p, size_t size, unsigned flags) { return cudaMalloc(p, size); }
cudaError_t cudaFree(void *p) { return release(p), cudaSuccess; }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return release(p), cudaSuccess; }
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) { return allocated(reserve(size, 1), p); }
cudaError_t cudaMallocHost(void **p, size_t size) { return allocated(reserve(size, 1), p); }
cudaError_t cudaFreeHost(void *p) { return release(p), cudaSuccess; }
cudaError_t cudaHostUnregister(void *p) { return release(p), cudaSuccess; }
cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags) {
    pthread_mutex_lock(&lock);
    int added = add_range(p, size, 1, 0);
    pthread_mutex_unlock(&lock);
    return added ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = MEMORY_BYTES;
    *available = MEMORY_BYTES - used - CONTEXT_BYTES;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p) {
    memset(attributes, 0, sizeof *attributes);
    pthread_mutex_lock(&lock);
    const Range *range = find_range(p);
    attributes->type = !range             ? cudaMemoryTypeUnregistered
                       : range->on_host ? cudaMemoryTypeHost
                                        : cudaMemoryTypeDevice;
    if (range) attributes->devicePointer = (void *)p;
    if (range && range->on_host) attributes->hostPointer = (void *)p;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

// Where an address is: 0 pageable host memory, 1 pinned, 2 device.
static int place(const void *address) {
    pthread_mutex_lock(&lock);
    const Range *range = find_range(address);
    int found = !range ? 0 : range->on_host ? 1 : 2;
    pthread_mutex_unlock(&lock);
    return found;
}

static cudaError_t copy(void *to, const void *from, size_t size) {
    int target = place(to), source = place(from);
    if (target == 2 && source == 2) {
        count(COUNT_on_device, 1), count(COUNT_on_device_bytes, size);
        copy_on_device(to, from, size);
    } else if (target == 2) {
        count(COUNT_to_device, 1), count(COUNT_to_device_bytes, size);
        count(COUNT_to_device_pageable, source == 0);
        device_write(to, from, size);
    } else if (source == 2) {
        count(COUNT_to_host, 1), count(COUNT_to_host_bytes, size);
        count(COUNT_to_host_pageable, target == 0);
        device_read(to, from, size);
    } else {
        memmove(to, from, size);
    }
    const char *places[] = {"pageable", "pinned", "device"};
    log_line("copy %s %s %zu", places[source], places[target], size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    count(COUNT_stream_waits, 1);
    return copy(to, from, size);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) {
    return copy(to, from, n);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, cudaStream_t s) {
    return copy(to, from, size);
}

cudaError_t cudaMemset(void *p, int value, size_t size) {
    count(COUNT_memsets, 1);
    log_line("memset %zu", size);
    pthread_mutex_lock(&lock);
    forget(p);  // reads as zeros
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int v, size_t size, cudaStream_t s) { return cudaMemset(p, v, size); }
