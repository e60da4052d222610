// Counters and a log of everything that was sent to the device.
#include "device.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#define AS_NAME(name) #name,
static const char *names[] = {COUNTERS(AS_NAME)};
static long values[NUM_COUNTERS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *file;

void count(enum Counter counter, long by) { __atomic_fetch_add(&values[counter], by, __ATOMIC_RELAXED); }

void count_peak(enum Counter counter, long value) {
    if (value > values[counter]) values[counter] = value;
}

// All counters as a JSON object. The text is overwritten by the next call.
const char *fake_cuda_counts(void) {
    static char text[4096];
    size_t used = 0;
    for (int i = 0; i < NUM_COUNTERS; i++)
        used += snprintf(text + used, sizeof text - used, "%c\"%s\": %ld", i ? ',' : '{', names[i], values[i]);
    snprintf(text + used, sizeof text - used, "}");
    return text;
}

// Starts a log in a file; NULL ends it.
void fake_cuda_log(const char *path) {
    pthread_mutex_lock(&lock);
    if (file) fclose(file);
    file = path ? fopen(path, "w") : NULL;
    pthread_mutex_unlock(&lock);
}

void log_line(const char *format, ...) {
    pthread_mutex_lock(&lock);
    if (file) {
        va_list arguments;
        va_start(arguments, format);
        vfprintf(file, format, arguments);
        va_end(arguments);
        fputc('\n', file);
    }
    pthread_mutex_unlock(&lock);
}

// For the driver library, which finds these two by name.
void fake_cuda_triton_launched(const char *kernel) {
    count(COUNT_launches, 1);
    count(COUNT_triton, 1);
    log_line("triton %s", kernel);
}

void fake_cuda_note(const char *text) { log_line("# %s", text); }
