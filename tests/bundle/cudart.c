/* A test double of libcudart: the calls that are used. Device memory is host memory whose addresses are shifted, so
   that one is never taken for the other. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SHIFT ((uintptr_t)1 << 60)
#define STREAM ((void *)0x57)

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaDriverGetVersion(int *version) { *version = 12060; return 0; }
int cudaStreamCreate(void **stream) { *stream = STREAM; return 0; }
int cudaStreamSynchronize(void *stream) { return stream == STREAM ? 0 : 400; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 16 : -1;
  return device;
}

int cudaMalloc(void **address, size_t size) {
  if (size > (size_t)1 << 30) return 2;
  *address = (void *)((uintptr_t)malloc(size) + SHIFT);
  return 0;
}

int cudaFree(void *address) { free((void *)((uintptr_t)address - SHIFT)); return 0; }

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  if (stream != STREAM || (kind != 1 && kind != 2)) return 1;
  if (kind == 1) to = (void *)((uintptr_t)to - SHIFT);
  if (kind == 2) from = (const void *)((uintptr_t)from - SHIFT);
  memcpy(to, from, size);
  return 0;
}

const char *cudaGetErrorString(int error) { return error == 2 ? "out of memory" : "invalid argument"; }
