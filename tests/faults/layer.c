// Counts what a process does to the files below a directory, and makes the Nth such thing fail. Preloaded (LD_PRELOAD),
// so that it sees the writes of Python, of Rust (safetensors) and of C++ (torch) alike; armed by layer.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, CRASH, FULL };
static int mode = OFF;
static long at, count;
static char root[PATH_MAX], last[PATH_MAX + 64];

void fault_arm(const char *below, long n, int how) {
  strncpy(root, below, PATH_MAX - 1);
  at = n, count = 0, last[0] = 0, mode = how;
}
long fault_count(void) { return count; }
const char *fault_last(void) { return last; }

static void absolute(int dirfd, const char *path, char *out) {
  char link[64];
  if (path && path[0] == '/') { strncpy(out, path, PATH_MAX - 1); return; }
  if (dirfd == AT_FDCWD) { if (!getcwd(out, PATH_MAX)) out[0] = 0; }
  else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t size = readlink(link, out, PATH_MAX - 1);
    out[size < 0 ? 0 : size] = 0;
  }
  if (path && out[0]) { strncat(out, "/", PATH_MAX - strlen(out) - 1); strncat(out, path, PATH_MAX - strlen(out) - 1); }
}

// Whether this is the one that fails. grows: whether it takes room on the disk.
static int due(const char *what, int dirfd, const char *path, int grows) {
  static __thread int inside = 0;
  if (mode == OFF || inside) return 0;
  inside = 1;
  char name[PATH_MAX] = {0};
  absolute(dirfd, path, name);
  inside = 0;
  if (strncmp(name, root, strlen(root))) return 0;
  if (mode == FULL && !grows) return 0;
  long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (mode == FULL ? now < at : now != at) return 0;
  if (!last[0]) snprintf(last, sizeof last, "%s %s", what, name);
  if (mode == FULL) errno = ENOSPC;
  else if (grows) return 1;  // a write is torn first
  else { fprintf(stderr, "CRASH %s\n", last); _exit(77); }
  return 1;
}
static void torn(void) { fprintf(stderr, "CRASH %s\n", last); _exit(77); }
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (due("write", fd, NULL, 1)) { if (mode == FULL) return -1; (void)!real(fd, data, size / 2); torn(); }
  return real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
  REAL(writev);
  if (due("writev", fd, NULL, 1)) { if (mode == FULL) return -1; (void)!real(fd, parts, n > 1 ? n / 2 : n); torn(); }
  return real(fd, parts, n);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  REAL(pwrite);
  if (due("pwrite", fd, NULL, 1)) { if (mode == FULL) return -1; (void)!real(fd, data, size / 2, offset); torn(); }
  return real(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }
int ftruncate(int fd, off_t size) {
  REAL(ftruncate);
  if (due("ftruncate", fd, NULL, 1)) { if (mode == FULL) return -1; torn(); }
  return real(fd, size);
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
  REAL(sendfile);
  if (due("sendfile", out, NULL, 1)) { if (mode == FULL) return -1; (void)!real(out, in, offset, size / 2); torn(); }
  return real(out, in, offset, size);
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t size) { return sendfile(out, in, offset, size); }
int fsync(int fd) {
  REAL(fsync);
  due("fsync", fd, NULL, 0);
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  due("fdatasync", fd, NULL, 0);
  return real(fd);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  due("rename", AT_FDCWD, from, 0);
  return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  due("rename", a, from, 0);
  return real(a, from, b, to);
}
int mkdir(const char *path, mode_t how) {
  REAL(mkdir);
  if (due("mkdir", AT_FDCWD, path, 1)) { if (mode == FULL) return -1; torn(); }
  return real(path, how);
}
int unlink(const char *path) {
  REAL(unlink);
  due("unlink", AT_FDCWD, path, 0);
  return real(path);
}
int unlinkat(int dirfd, const char *path, int flags) {
  REAL(unlinkat);
  due("unlink", dirfd, path, 0);
  return real(dirfd, path, flags);
}
int rmdir(const char *path) {
  REAL(rmdir);
  due("rmdir", AT_FDCWD, path, 0);
  return real(path);
}
static int opening(int dirfd, const char *path, int flags) {
  if (!(flags & O_CREAT) || !due("open", dirfd, path, 1)) return 0;
  if (mode != FULL) torn();
  return 1;
}
#define MODE_OF(flags) mode_t how = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); how = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) {
  REAL(open);
  MODE_OF(flags)
  return opening(AT_FDCWD, path, flags) ? -1 : real(path, flags, how);
}
int open64(const char *path, int flags, ...) {
  REAL(open64);
  MODE_OF(flags)
  return opening(AT_FDCWD, path, flags) ? -1 : real(path, flags, how);
}
int openat(int dirfd, const char *path, int flags, ...) {
  REAL(openat);
  MODE_OF(flags)
  return opening(dirfd, path, flags) ? -1 : real(dirfd, path, flags, how);
}
int openat64(int dirfd, const char *path, int flags, ...) {
  REAL(openat64);
  MODE_OF(flags)
  return opening(dirfd, path, flags) ? -1 : real(dirfd, path, flags, how);
}
