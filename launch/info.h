/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file info.h
 * @brief `lodemark info`: version, build, backends compiled and usable, transports, memory, configuration.
 */
#ifndef LODE_LAUNCH_INFO_H
#define LODE_LAUNCH_INFO_H

#include <jansson.h>

int lode_command_info(int argc, char **argv);

/* Each gathers one part; they never fail, but leave out what the machine does not tell. (info_*.c) */
json_t *lode_info_build(void);
json_t *lode_info_backends(void);
json_t *lode_info_devices(void);
json_t *lode_info_ucx(void);
json_t *lode_info_mpi(void);
json_t *lode_info_nccl(void);
json_t *lode_info_onednn(void);
json_t *lode_info_machine(void);
json_t *lode_info_memory(void);

#endif
