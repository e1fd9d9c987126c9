/* Calls of the C library that change or open files fail when told to: the n-th one below a folder.

   gcc -shared -fPIC -O1 -o faults.so faults.c -ldl; LD_PRELOAD=./faults.so python ...
   fault_arm(folder, n, errno, how, log) is called through ctypes in the process under test. With n = 0 nothing fails and
   each point is written to the descriptor `log`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE, ON, TORN, KILL_BEFORE, KILL_AFTER, KILL_TORN };
static char folder[PATH_MAX];
static size_t length;
static long wanted, count;
static int error_number, how, out = -1, armed, failing;
static pid_t owner;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void fault_arm(const char *place, long n, int number, int kind, int log) {
    strncpy(folder, place, sizeof folder - 1);
    length = strlen(folder);
    wanted = n, error_number = number, how = kind, out = log, owner = getpid(), count = 0, failing = 0, armed = 1;
}

long fault_count(void) { return count; }

static void whole_path(int base, const char *path, char *found) {
    char link[64], start[PATH_MAX] = "";
    if (path[0] != '/') {
        if (base == AT_FDCWD) {
            if (!getcwd(start, sizeof start)) start[0] = 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", base);
            ssize_t n = readlink(link, start, sizeof start - 1);
            start[n > 0 ? n : 0] = 0;
        }
        snprintf(found, PATH_MAX, "%s/%s", start, path);
    } else snprintf(found, PATH_MAX, "%s", path);
}

static void path_of(int fd, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, found, PATH_MAX - 1);
    found[n > 0 ? n : 0] = 0;
}

/* 0: go on. 1: fail now, errno is set. 2: do half of it and fail. 3: do it, then die. 4: half, then die. */
static int point(const char *kind, const char *path) {
    if (!armed || strncmp(path, folder, length) != 0 || path[length] != '/') return 0;
    if (getpid() != owner) return 0;
    long number = __sync_add_and_fetch(&count, 1);
    if (wanted == 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%s %s\n", kind, path + length + 1);
        REAL(write);
        if (real(out, line, (size_t)n) < 0) abort();
        return 0;
    }
    int space = error_number == ENOSPC && strcmp(kind, "unlink") != 0 && strcmp(kind, "read") != 0;
    if (number != wanted && !(how == ON && failing && (space || error_number != ENOSPC))) return 0;
    failing = 1;
    errno = error_number;
    if (how == KILL_BEFORE) kill(getpid(), SIGKILL);
    return how == TORN ? 2 : how == KILL_AFTER ? 3 : how == KILL_TORN ? 4 : 1;
}

#define AT_PATH(kind, base, path, call) do { \
    char where[PATH_MAX]; int kept = errno; \
    if (armed) { whole_path(base, path, where); \
        int what = point(kind, where); \
        if (what == 3 || what == 4) { (void)!(call); kill(getpid(), SIGKILL); } \
        if (what) return -1; } \
    errno = kept; return call; } while (0)

static const char *opening(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? "open" : "read"; }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    REAL(name); va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    AT_PATH(opening(flags), AT_FDCWD, path, real(path, flags, mode)); }
#define OPENAT(name) int name(int base, const char *path, int flags, ...) { \
    REAL(name); va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    AT_PATH(opening(flags), base, path, real(base, path, flags, mode)); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
    REAL(name); char where[PATH_MAX]; int kept = errno; \
    if (armed) { whole_path(AT_FDCWD, path, where); if (point(mode[0] == 'r' ? "read" : "open", where)) return NULL; } \
    errno = kept; return real(path, mode); }
FOPEN(fopen) FOPEN(fopen64)

#define WRITE(fd, size, call, half) do { \
    char where[PATH_MAX]; int kept = errno; \
    if (armed) { path_of(fd, where); \
        switch (point("write", where)) { \
        case 1: return -1; \
        case 2: { /* as on a full disk: a part is taken, and the call for the rest fails */ \
            ssize_t taken = half; wanted = count + 1, how = ONCE, errno = error_number; \
            return taken > 0 ? taken : -1; } \
        case 3: (void)!(call); kill(getpid(), SIGKILL); \
        case 4: (void)!(half); kill(getpid(), SIGKILL); } } \
    errno = kept; return call; } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    WRITE(fd, size, real(fd, data, size), real(fd, data, size / 2));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    WRITE(fd, size, real(fd, data, size, at), real(fd, data, size / 2, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    WRITE(fd, size, real(fd, data, size, at), real(fd, data, size / 2, at));
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev);
    WRITE(fd, 0, real(fd, parts, number), real(fd, parts, number > 1 ? number / 2 : 0));
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    REAL(sendfile);
    WRITE(to, size, real(to, from, at, size), real(to, from, at, size > 64 ? 64 : size / 2));
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    REAL(sendfile64);
    WRITE(to, size, real(to, from, at, size), real(to, from, at, size > 64 ? 64 : size / 2));
}

#define ON_FD(name, kind) int name(int fd) { \
    REAL(name); char where[PATH_MAX]; int kept = errno; \
    if (armed) { path_of(fd, where); int what = point(kind, where); \
        if (what == 3 || what == 4) { real(fd); kill(getpid(), SIGKILL); } if (what) return -1; } \
    errno = kept; return real(fd); }
ON_FD(fsync, "fsync") ON_FD(fdatasync, "fsync")

#define CUT(name, type) int name(int fd, type size) { \
    REAL(name); char where[PATH_MAX]; int kept = errno; \
    if (armed) { path_of(fd, where); int what = point("truncate", where); \
        if (what == 3 || what == 4) { (void)!real(fd, size); kill(getpid(), SIGKILL); } if (what) return -1; } \
    errno = kept; return real(fd, size); }
CUT(ftruncate, off_t) CUT(ftruncate64, off64_t)

int rename(const char *from, const char *to) { REAL(rename); AT_PATH("rename", AT_FDCWD, to, real(from, to)); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    AT_PATH("rename", b, to, real(a, from, b, to));
}
int unlink(const char *path) { REAL(unlink); AT_PATH("unlink", AT_FDCWD, path, real(path)); }
int unlinkat(int base, const char *path, int flags) { REAL(unlinkat); AT_PATH("unlink", base, path, real(base, path, flags)); }
int rmdir(const char *path) { REAL(rmdir); AT_PATH("unlink", AT_FDCWD, path, real(path)); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); AT_PATH("mkdir", AT_FDCWD, path, real(path, mode)); }
int mkdirat(int base, const char *path, mode_t mode) { REAL(mkdirat); AT_PATH("mkdir", base, path, real(base, path, mode)); }
int link(const char *from, const char *to) { REAL(link); AT_PATH("rename", AT_FDCWD, to, real(from, to)); }
int symlink(const char *from, const char *to) { REAL(symlink); AT_PATH("rename", AT_FDCWD, to, real(from, to)); }
