/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/fabric_inside.h"

/** How the others of the host find the first rank's file. */
typedef struct invitation {
    int64_t pid;
    uint64_t inode;
    int32_t fd, status;
} invitation_t;

static void host_file(size_t bytes, int *fd, invitation_t *invitation)
{
    struct stat facts;
    *fd = memfd_create("lodemark", MFD_CLOEXEC);
    *invitation = (invitation_t){.pid = getpid(), .fd = *fd};
    if (*fd < 0 || ftruncate(*fd, (off_t)bytes) < 0 || fstat(*fd, &facts) < 0)
        invitation->status = lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes of shared memory: %m", bytes);
    else
        invitation->inode = facts.st_ino;
}

static lode_status_t guest_file(const invitation_t *invitation, int *fd)
{
    char path[64];
    struct stat facts;
    if (invitation->status != LODE_OK)
        return lode_fail(invitation->status, "the host's first rank has no shared memory to offer");
    snprintf(path, sizeof path, "/proc/%lld/fd/%d", (long long)invitation->pid, invitation->fd);
    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd < 0 || fstat(*fd, &facts) < 0 || facts.st_ino != invitation->inode)
        return lode_fail(LODE_ERR_NO_MEMORY,
                         "shared memory of process %lld: %m; ranks of one host must see each "
                         "other's processes (one user, one pid namespace)",
                         (long long)invitation->pid);
    return LODE_OK;
}

/* A memory file and no name in /dev/shm: containers keep that small, and a killed job leaves nothing behind. */
static lode_status_t open_file(lode_fabric_h fabric, size_t bytes, int *fd)
{
    invitation_t invitation = {0};
    int local;
    LODE_TRY(FABRIC_MPI(MPI_Comm_rank(fabric->node_comm, &local)));
    if (local == 0)
        host_file(bytes, fd, &invitation);
    LODE_TRY(FABRIC_MPI(MPI_Bcast(&invitation, sizeof invitation, MPI_BYTE, 0, fabric->node_comm)));
    return local == 0 ? (lode_status_t)invitation.status : guest_file(&invitation, fd);
}

lode_status_t lode_fabric_shared(lode_fabric_h fabric, size_t bytes, void **base, int *fd)
{
    int file = -1, all;
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
    lode_status_t reduced = FABRIC_MPI(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, fabric->node_comm));
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
