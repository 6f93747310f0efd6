/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file config.h
 * @brief What a lode_config_h holds, for the rooms that read it.
 */
#ifndef LODE_BASE_CONFIG_H
#define LODE_BASE_CONFIG_H

#include "base/base.h"

/** The values of lode_library_options. Borrowed; lives as long as the configuration. */
lode_options_t *lode_config_options(lode_config_h config);

#endif
