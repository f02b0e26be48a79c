// Keeps beside a folder what a power cut would leave of its files: preloaded into a server, it copies a file of the
// folder POWERCUT_DISK to the folder POWERCUT_SHADOW each time that the file is synced, and only then. Files that are
// deleted are so at once in both.
//
// As long as there is a file POWERCUT_STANDSTILL, no sync ends.
//
// It copies through the descriptor that is synced: to open and close the file here would drop SQLite's locks. And it
// is slow, as disks are, so that a power cut often hits the time of a sync.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK (1 << 20)
#define SYNC_MICROSECONDS 5000

static void fail(const char *what) {
    perror(what);
    abort();
}

// The path in the shadow of a path on the disk; 0 where that is elsewhere.
static int shadow_of(const char *path, char shadow[PATH_MAX]) {
    const char *disk = getenv("POWERCUT_DISK"), *folder = getenv("POWERCUT_SHADOW");
    if (!disk || !folder)
        return 0;
    size_t length = strlen(disk);
    if (strncmp(path, disk, length) != 0 || path[length] != '/')
        return 0;
    snprintf(shadow, PATH_MAX, "%s%s", folder, path + length);
    return 1;
}

static void keep(int descriptor) {
    char link[64], path[PATH_MAX], shadow[PATH_MAX], new[PATH_MAX + 4];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return;
    path[length] = 0;
    // Not of a file that is deleted.
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_nlink == 0)
        return;
    if (!shadow_of(path, shadow))
        return;
    // The whole file appears at once, whenever the process is killed.
    snprintf(new, sizeof new, "%s-new", shadow);
    int copy = open(new, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    char *buffer = malloc(CHUNK);
    if (copy < 0 || !buffer)
        fail(new);
    off_t at = 0;
    ssize_t got;
    while ((got = pread(descriptor, buffer, CHUNK, at)) > 0) {
        if (write(copy, buffer, got) != got)
            fail(new);
        at += got;
    }
    if (got < 0)
        fail(path);
    free(buffer);
    close(copy);
    if (rename(new, shadow) != 0)
        fail(shadow);
}

static int sync_by(const char *name, int descriptor) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep(SYNC_MICROSECONDS);
    const char *standstill = getenv("POWERCUT_STANDSTILL");
    while (standstill && access(standstill, F_OK) == 0)
        usleep(SYNC_MICROSECONDS);
    int result = real(descriptor);
    if (result == 0)
        keep(descriptor);
    return result;
}

int fsync(int descriptor) {
    return sync_by("fsync", descriptor);
}

int fdatasync(int descriptor) {
    return sync_by("fdatasync", descriptor);
}

int unlink(const char *path) {
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    char shadow[PATH_MAX];
    int result = real(path);
    if (result == 0 && shadow_of(path, shadow))
        real(shadow);
    return result;
}
