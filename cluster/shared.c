/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/fabric_inside.h"

lode_status_t fabric_memfile_create(size_t bytes, unsigned flags, int *fd)
{
    *fd = memfd_create("lodemark", MFD_CLOEXEC | flags);
    if (*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0)
        return LODE_OK;
    lode_status_t status = lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes of shared memory: %m", bytes);
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return status;
}

lode_status_t fabric_memfile_describe(int fd, fabric_memfile_t *file)
{
    struct stat facts;
    if (fstat(fd, &facts) < 0)
        return lode_fail(LODE_ERR_INTERNAL, "a memory file of this process: %m");
    *file = (fabric_memfile_t){.pid = getpid(), .inode = facts.st_ino, .fd = fd};
    return LODE_OK;
}

/* The inode tells a number of another pid namespace from the process that was meant. */
lode_status_t fabric_memfile_open(const fabric_memfile_t *file, int *fd)
{
    char path[64];
    struct stat facts;
    snprintf(path, sizeof path, "/proc/%lld/fd/%d", (long long)file->pid, file->fd);
    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd >= 0 && fstat(*fd, &facts) == 0 && facts.st_ino == file->inode)
        return LODE_OK;
    lode_status_t status = lode_fail(LODE_ERR_NO_MEMORY,
                                     "shared memory of process %lld: %m; ranks of one host must see each other's "
                                     "processes (one user, one pid namespace)",
                                     (long long)file->pid);
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return status;
}

/* A memory file and no name in /dev/shm: containers keep that small, and a killed job would leave it behind. */
static lode_status_t open_file(lode_fabric_h fabric, size_t bytes, int *fd)
{
    fabric_memfile_t file = {.fd = -1};
    lode_status_t status = LODE_OK;
    if (fabric->local_rank == 0)
        status = fabric_memfile_create(bytes, 0, fd);
    if (fabric->born == 0)
        return status;
    if (status == LODE_OK && fabric->local_rank == 0)
        status = fabric_memfile_describe(*fd, &file);
    LODE_TRY(FABRIC_MPI(MPI_Bcast(&file, sizeof file, MPI_BYTE, 0, fabric->node_comm)));
    if (fabric->local_rank == 0)
        return status;
    if (file.fd < 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "the first rank of this host has no shared memory to offer");
    return fabric_memfile_open(&file, fd);
}

lode_status_t lode_fabric_shared(lode_fabric_h fabric, size_t bytes, void **base, int *fd)
{
    int file = -1, all = LODE_OK;
    void *memory = MAP_FAILED;
    lode_status_t status = LODE_OK;
    if (bytes == 0 || fabric->shared_count == FABRIC_SHARED_MAX)
        status = lode_fail(LODE_ERR_INVALID, "%zu bytes of shared memory as mapping %u of at most %u", bytes,
                           fabric->shared_count + 1, FABRIC_SHARED_MAX);
    else
        status = open_file(fabric, bytes, &file);
    if (status == LODE_OK) {
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
        if (memory == MAP_FAILED)
            status = lode_fail(LODE_ERR_NO_MEMORY, "mapping %zu bytes of shared memory: %m", bytes);
    }
    int mine = status;
    lode_status_t reduced = LODE_OK;
    if (fabric->born > 0)
        reduced = FABRIC_MPI(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, fabric->node_comm));
    if (status == LODE_OK)
        status = reduced;
    if (status == LODE_OK && all != LODE_OK)
        status =
            lode_fail((lode_status_t)all, "another rank of this host could not map %zu bytes of shared memory", bytes);
    if (status != LODE_OK)
        goto unmap;
    madvise(memory, bytes, MADV_HUGEPAGE); /* refused where shared memory has none */
    fabric->shared[fabric->shared_count].base = memory;
    fabric->shared[fabric->shared_count].bytes = bytes;
    fabric->shared[fabric->shared_count++].fd = file;
    *base = memory;
    *fd = file;
    return LODE_OK;
unmap:
    if (memory != MAP_FAILED)
        munmap(memory, bytes);
    if (file >= 0)
        close(file);
    return status;
}

void fabric_shared_destroy(lode_fabric_h fabric)
{
    for (uint32_t i = 0; i < fabric->shared_count; i++) {
        munmap(fabric->shared[i].base, fabric->shared[i].bytes);
        close(fabric->shared[i].fd);
    }
    fabric->shared_count = 0;
}
