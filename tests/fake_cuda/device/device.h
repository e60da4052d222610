// What the parts of the device share: counters, the log, and the contents of its memory.
#pragma once
#include <stddef.h>

// Every counter, by its name in the report.
#define COUNTERS(X)                                                                                   \
    X(launches) X(products) X(triton) X(graph_launches) X(memsets)                                    \
    X(to_device) X(to_device_bytes) X(to_device_pageable)                                             \
    X(to_host) X(to_host_bytes) X(to_host_pageable)                                                   \
    X(on_device) X(on_device_bytes)                                                                   \
    X(stream_waits) X(event_waits) X(device_waits)                                                    \
    X(reserved_bytes) X(reserved_bytes_peak) X(pinned_bytes)                                          \
    X(all_reduce) X(all_gather) X(reduce_scatter) X(broadcast) X(reduce) X(collective_bytes)
#define AS_ENUM(name) COUNT_##name,
enum Counter { COUNTERS(AS_ENUM) NUM_COUNTERS };

#define MEMORY_BYTES 150754820096ULL  // 143,771 MiB, as an H200 reports
#define KEPT_BYTES (1 << 20)          // larger copies are counted, and read as zeros

void count(enum Counter counter, long by);
void count_peak(enum Counter counter, long value);
void log_line(const char *format, ...);  // does nothing unless a log is open

// The device keeps what was copied to it. All else, which a kernel would have computed, reads as zeros, unless
// the same range of memory held a copied tensor before.
void device_write(void *to, const void *from, size_t size);  // from host memory
void device_read(void *to, const void *from, size_t size);   // to host memory
void *device_reserve(size_t size);                           // addresses without memory; NULL: none left
void device_release(void *start);
