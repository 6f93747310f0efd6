/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file manner_inside.h
 * @brief Reading reader.json.
 */
#ifndef LODE_READER_MANNER_INSIDE_H
#define LODE_READER_MANNER_INSIDE_H

#include "reader/tokenizer_inside.h"

/**
 * A manner from reader.json.
 * @param[in] file    NULL: there is none
 * @param[in] folder  whose config.json and generation_config.json name the tokens that end an answer, if @p file names
 *                    no stops
 */
lode_status_t lode_manner_read(const json_t *file, const char *folder, lode_tokenizer_h tokenizer, uint32_t context,
                               lode_manner_t *manner);

#endif
