/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file manner_inside.h
 * @brief Reading reader.json.
 */
#ifndef LODE_READER_MANNER_INSIDE_H
#define LODE_READER_MANNER_INSIDE_H

#include "reader/tokenizer_inside.h"

/**
 * Read reader.json into a manner whose range is the model's context; what the file leaves out stays NULL or zero. Call
 * lode_manner_free() whatever it returns.
 */
lode_status_t lode_manner_read(const json_t *file, lode_tokenizer_h tokenizer, lode_manner_t *manner);

#endif
