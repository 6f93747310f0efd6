/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "service/mailbox.h"

lode_status_t mailbox_make(size_t bytes, int *out, void **memory)
{
    int fd = memfd_create("lodemark-client", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        goto fail;
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        goto fail;
    *out = fd;
    *memory = mapped;
    return LODE_OK;
fail:;
    lode_status_t status = lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes of memory shared with a client: %m", bytes);
    if (fd >= 0)
        close(fd);
    return status;
}

lode_status_t mailbox_describe(int fd, Lodemark__MemoryFile *file)
{
    struct stat facts;
    if (fstat(fd, &facts) < 0)
        return lode_fail(LODE_ERR_INTERNAL, "a memory file of this process: %m");
    file->pid = getpid();
    file->fd = fd;
    file->inode = facts.st_ino;
    return LODE_OK;
}

/* The inode tells a number of another pid namespace from the process that was meant. */
lode_status_t mailbox_map(const Lodemark__MemoryFile *file, size_t bytes, void **memory)
{
    char path[64];
    struct stat facts;
    snprintf(path, sizeof path, "/proc/%lld/fd/%d", (long long)file->pid, file->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return lode_fail(LODE_ERR_UNSUPPORTED, "shared memory of process %lld: %m", (long long)file->pid);
    int seals = fcntl(fd, F_GET_SEALS);
    bool same = fstat(fd, &facts) == 0 && facts.st_ino == file->inode && (uint64_t)facts.st_size == bytes &&
                seals > 0 && (seals & F_SEAL_SHRINK);
    void *mapped = same ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (mapped == MAP_FAILED)
        return lode_fail(LODE_ERR_UNSUPPORTED, "shared memory of process %lld is not what was announced",
                         (long long)file->pid);
    *memory = mapped;
    return LODE_OK;
}

/* One kernel, and one network: hosts that are played by network namespaces count as several. */
void mailbox_host(char host[64])
{
    ssize_t length = 0;
    struct stat network = {0};
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, host, 36);
        close(fd);
    }
    host[length > 0 ? length : 0] = '\0';
    if (length <= 0 || stat("/proc/self/ns/net", &network) != 0)
        host[0] = '\0';
    else
        snprintf(host + length, 64 - (size_t)length, "/%llx", (unsigned long long)network.st_ino);
}

/* -------------------------------------------------------------------- sleep */

void mailbox_sleep(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec timeout = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, NULL, 0);
}

void mailbox_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

void mailbox_ring(mailbox_bell_t *bell)
{
    atomic_fetch_add(&bell->rung, 1);
    if (atomic_load(&bell->sleeps))
        mailbox_wake(&bell->rung);
}
