/* Preloaded into a process: counts its file operations below a folder, makes the n-th fail, be cut short, or kill the
 * process, and writes down what was done. Nothing happens before faults_arm() is called. Flushing is only counted: what
 * a power cut leaves is computed from the record.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { COUNT, FULL_ONCE, IO_ONCE, FULL, SHORT, KILL_BEFORE, KILL_AFTER, TORN };
enum op { OPEN, WRITE, SYNC, RENAME, EXCHANGE, UNLINK, MKDIR, RMDIR, TRUNCATE, LINK };
enum verdict { GO, FAIL, HALF, DIE_AFTER, HALF_AND_DIE };

static char root[PATH_MAX];
static size_t root_length;
static int armed, kind, log_fd = -1, disk_is_full;
static long target, count;

struct record { uint32_t op, flags, a, b; uint64_t inode, offset, size; };

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_arm(const char *folder, int how, long n, int record) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    kind = how; target = n; count = 0; disk_is_full = 0; log_fd = record; armed = 1;
}

long faults_disarm(void) { armed = 0; return count; }

static int absolute(int at, const char *path, char *into) {
    char base[PATH_MAX], link[64];
    if (!armed || path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(into, PATH_MAX, "%s", path);
    } else {
        if (at == AT_FDCWD) {
            if (getcwd(base, sizeof base) == NULL) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t size = readlink(link, base, sizeof base - 1);
            if (size < 0) return 0;
            base[size] = 0;
        }
        if (snprintf(into, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return strncmp(into, root, root_length) == 0 && (into[root_length] == '/' || into[root_length] == 0);
}

static int watched(int fd) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* What is to happen to the next operation. Removing and renaming need no room, so a full disk lets them be. */
static enum verdict next(enum op op) {
    int needs_room = op != UNLINK && op != RMDIR && op != RENAME && op != EXCHANGE && op != TRUNCATE;
    count++;
    if (kind == SHORT && disk_is_full && op == WRITE) { errno = ENOSPC; disk_is_full = 0; return FAIL; }
    if (kind == FULL && count >= target && needs_room) { errno = ENOSPC; return FAIL; }
    if (count != target) return GO;
    switch (kind) {
    case FULL_ONCE: errno = ENOSPC; return FAIL;
    case IO_ONCE: errno = EIO; return FAIL;
    case SHORT: if (op != WRITE) return GO; disk_is_full = 1; return HALF;
    case KILL_BEFORE: kill(getpid(), SIGKILL); return FAIL;
    case KILL_AFTER: return DIE_AFTER;
    case TORN: return op == WRITE ? HALF_AND_DIE : GO;
    default: return GO;
    }
}

static void note(enum op op, uint32_t flags, uint64_t inode, const char *a, const char *b, uint64_t offset,
                 const void *data, uint64_t size) {
    if (log_fd < 0) return;
    struct record it = {op, flags, a ? strlen(a) : 0, b ? strlen(b) : 0, inode, offset, size};
    int kept = errno;
    struct iovec parts[] = {{&it, sizeof it}, {(void *)a, it.a}, {(void *)b, it.b}, {(void *)data, data ? size : 0}};
    REAL(writev)(log_fd, parts, 4);
    errno = kept;
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

static void end(enum verdict verdict) {
    if (verdict == DIE_AFTER || verdict == HALF_AND_DIE) kill(getpid(), SIGKILL);
}

static int open_(const char *name, int at, const char *path, int flags, mode_t mode) {
    static int (*real)(int, const char *, int, ...);
    char full[PATH_MAX];
    if (!real) real = dlsym(RTLD_NEXT, "openat");
    (void)name;
    if (!(flags & (O_CREAT | O_TRUNC)) || !absolute(at, path, full)) return real(at, path, flags, mode);
    enum verdict verdict = next(OPEN);
    if (verdict == FAIL) return -1;
    int fd = real(at, path, flags, mode);
    if (fd >= 0) note(OPEN, flags & O_TRUNC ? 1 : 0, inode_of(fd), full, NULL, 0, NULL, 0);
    end(verdict);
    return fd;
}

#define MODE(flags, mode) \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { mode_t m = 0; MODE(flags, m) return open_("open", AT_FDCWD, path, flags, m); }
int open64(const char *path, int flags, ...) { mode_t m = 0; MODE(flags, m) return open_("open", AT_FDCWD, path, flags | O_LARGEFILE, m); }
int openat(int at, const char *path, int flags, ...) { mode_t m = 0; MODE(flags, m) return open_("openat", at, path, flags, m); }
int openat64(int at, const char *path, int flags, ...) { mode_t m = 0; MODE(flags, m) return open_("openat", at, path, flags | O_LARGEFILE, m); }

static ssize_t write_at(int fd, const void *data, size_t size, off_t offset) {
    ssize_t (*at)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    ssize_t (*here)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!watched(fd)) return offset < 0 ? here(fd, data, size) : at(fd, data, size, offset);
    enum verdict verdict = next(WRITE);
    if (verdict == FAIL) return -1;
    if ((verdict == HALF || verdict == HALF_AND_DIE) && size > 1) size /= 2;
    off_t where = offset;
    if (where < 0) where = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = offset < 0 ? here(fd, data, size) : at(fd, data, size, offset);
    if (done > 0) note(WRITE, 0, inode_of(fd), NULL, NULL, where, data, done);
    end(verdict);
    return done;
}

ssize_t write(int fd, const void *data, size_t size) { return write_at(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }

/* The first part alone: whoever calls must be ready for a short write. */
ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (!watched(fd)) return REAL(writev)(fd, parts, number);
    for (int i = 0; i < number; i++) if (parts[i].iov_len) return write_at(fd, parts[i].iov_base, parts[i].iov_len, -1);
    return 0;
}

/* Copies within the kernel are refused below the folder, so that what is written is seen. */
ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    if (watched(out)) { errno = ENOTSOCK; return -1; }
    ssize_t (*real)(int, int, off_t *, size_t) = dlsym(RTLD_NEXT, "sendfile");
    return real(out, in, offset, size);
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t size) { return sendfile(out, in, offset, size); }
ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags) {
    if (watched(out)) { errno = EXDEV; return -1; }
    return REAL(copy_file_range)(in, from, out, to, size, flags);
}

static int sync_(int fd, int (*real)(int)) {
    if (!watched(fd)) return real(fd);
    enum verdict verdict = next(SYNC);
    if (verdict == FAIL) return -1;
    note(SYNC, 0, inode_of(fd), NULL, NULL, 0, NULL, 0);
    end(verdict);
    return 0;
}

int fsync(int fd) { return sync_(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_(fd, REAL(fdatasync)); }

int ftruncate(int fd, off_t size) {
    int (*real)(int, off_t) = dlsym(RTLD_NEXT, "ftruncate64");
    if (!watched(fd)) return real(fd, size);
    enum verdict verdict = next(TRUNCATE);
    if (verdict == FAIL) return -1;
    int done = real(fd, size);
    if (done == 0) note(TRUNCATE, 0, inode_of(fd), NULL, NULL, 0, NULL, size);
    end(verdict);
    return done;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

static int renamed(int at, const char *a, int bt, const char *b, unsigned flags) {
    int (*real)(int, const char *, int, const char *, unsigned) = dlsym(RTLD_NEXT, "renameat2");
    char from[PATH_MAX], to[PATH_MAX];
    if (!absolute(at, a, from) || !absolute(bt, b, to)) return real(at, a, bt, b, flags);
    enum op op = flags & 2 ? EXCHANGE : RENAME;
    enum verdict verdict = next(op);
    if (verdict == FAIL) return -1;
    int done = real(at, a, bt, b, flags);
    if (done == 0) note(op, 0, 0, from, to, 0, NULL, 0);
    end(verdict);
    return done;
}

int rename(const char *a, const char *b) { return renamed(AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int at, const char *a, int bt, const char *b) { return renamed(at, a, bt, b, 0); }
int renameat2(int at, const char *a, int bt, const char *b, unsigned flags) { return renamed(at, a, bt, b, flags); }

int unlinkat(int at, const char *path, int flags) {
    char full[PATH_MAX];
    if (!absolute(at, path, full)) return REAL(unlinkat)(at, path, flags);
    enum op op = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    enum verdict verdict = next(op);
    if (verdict == FAIL) return -1;
    int done = REAL(unlinkat)(at, path, flags);
    if (done == 0) note(op, 0, 0, full, NULL, 0, NULL, 0);
    end(verdict);
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!absolute(at, path, full)) return REAL(mkdirat)(at, path, mode);
    struct stat found;
    enum verdict verdict = next(MKDIR);
    if (verdict == FAIL) return -1;
    int done = REAL(mkdirat)(at, path, mode);
    if (done == 0 && fstatat(at, path, &found, 0) == 0) note(MKDIR, 0, found.st_ino, full, NULL, 0, NULL, 0);
    end(verdict);
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int at, const char *a, int bt, const char *b, int flags) {
    char from[PATH_MAX], to[PATH_MAX];
    if (!absolute(at, a, from) || !absolute(bt, b, to)) return REAL(linkat)(at, a, bt, b, flags);
    enum verdict verdict = next(LINK);
    if (verdict == FAIL) return -1;
    int done = REAL(linkat)(at, a, bt, b, flags);
    if (done == 0) note(LINK, 0, 0, from, to, 0, NULL, 0);
    end(verdict);
    return done;
}
int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }
