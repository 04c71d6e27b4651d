// Preloaded into a process: appends every name that it resolves and every internet connection that it makes to NETWORK_LOG.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void record(const char *call, const char *name) {
  FILE *log = fopen(getenv("NETWORK_LOG"), "a");
  if (log) {
    fprintf(log, "%s %s\n", call, name);
    fclose(log);
  }
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
  int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
  if (node) record("getaddrinfo", node);
  return real(node, service, hints, result);
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  if (address->sa_family == AF_INET || address->sa_family == AF_INET6) record("connect", "");
  return real(socket, address, length);
}
