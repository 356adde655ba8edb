/* Lets the n-th system call of a kind fail below one folder, for `inject.py`; loaded with LD_PRELOAD.
 *
 * `inject_arm(kind, number, folder)` sets which one; number 0 only counts, and `inject_seen()` says how many there were.
 * A call counts if its file lies below `folder`; of allocations, if it is one of torch's tensors (64 KiB and more). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { NONE, WRITE, SYNC, RENAME, READ, ALLOCATION, OPEN };

static _Atomic int kind = NONE, number = 0, seen = 0, fired = 0;
static char folder[4096];

void inject_arm(int which, int at, const char *below) {
    snprintf(folder, sizeof folder, "%s", below);
    seen = fired = 0;
    number = at;
    kind = which;
}

int inject_seen(void) { return seen; }
int inject_fired(void) { return fired; }

static int below(const char *path) { return path && folder[0] && strncmp(path, folder, strlen(folder)) == 0; }

static int file_below(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return below(path);
}

static int at_below(int from, const char *path) {
    if (path && (path[0] == '/' || from == AT_FDCWD)) return below(path);
    return file_below(from);
}

/* Whether this call is the one; counts it. */
static int due(int which) {
    if (kind != which) return 0;
    int now = ++seen;
    if (number == 0 || now != number) return 0;
    fired = 1;
    return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(code) do { errno = code; return -1; } while (0)

ssize_t write(int file, const void *from, size_t size) {
    REAL(write);
    if (kind == WRITE && file_below(file) && due(WRITE)) FAIL(ENOSPC);
    return real(file, from, size);
}

ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
    REAL(pwrite64);
    if (kind == WRITE && file_below(file) && due(WRITE)) FAIL(ENOSPC);
    return real(file, from, size, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    if (kind == WRITE && file_below(file) && due(WRITE)) FAIL(ENOSPC);
    return real(file, parts, count);
}

int ftruncate64(int file, off64_t size) {
    REAL(ftruncate64);
    if (kind == WRITE && file_below(file) && due(WRITE)) FAIL(ENOSPC);
    return real(file, size);
}

int fsync(int file) {
    REAL(fsync);
    if (kind == SYNC && file_below(file) && due(SYNC)) FAIL(EIO);
    return real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    if (kind == SYNC && file_below(file) && due(SYNC)) FAIL(EIO);
    return real(file);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (kind == RENAME && (below(from) || below(to)) && due(RENAME)) FAIL(EIO);
    return real(from, to);
}

int renameat(int at, const char *from, int into, const char *to) {
    REAL(renameat);
    if (kind == RENAME && (at_below(at, from) || at_below(into, to)) && due(RENAME)) FAIL(EIO);
    return real(at, from, into, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (kind == OPEN && below(path) && due(OPEN)) FAIL(EACCES);
    return real(path, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        __builtin_va_list rest;
        __builtin_va_start(rest, flags);
        mode = (mode_t)__builtin_va_arg(rest, int);
        __builtin_va_end(rest);
    }
    if (kind == OPEN && below(path) && (flags & O_ACCMODE) != O_RDONLY && due(OPEN)) FAIL(EACCES);
    if (kind == READ && below(path) && (flags & O_ACCMODE) == O_RDONLY && due(READ)) FAIL(EIO);
    return real(path, flags, mode);
}

ssize_t read(int file, void *into, size_t size) {
    REAL(read);
    if (kind == READ && file_below(file) && due(READ)) FAIL(EIO);
    return real(file, into, size);
}

void *mmap64(void *at, size_t size, int protection, int flags, int file, off64_t from) {
    REAL(mmap64);
    if (kind == READ && file >= 0 && file_below(file) && due(READ)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(at, size, protection, flags, file, from);
}

int posix_memalign(void **into, size_t alignment, size_t size) {
    REAL(posix_memalign);
    Dl_info caller; /* torch's own allocator; oneDNN and others crash without memory, whoever calls them */
    if (kind == ALLOCATION && size >= 65536 && dladdr(__builtin_return_address(0), &caller) && caller.dli_fname &&
        strstr(caller.dli_fname, "libc10") && due(ALLOCATION))
        return ENOMEM;
    return real(into, alignment, size);
}
