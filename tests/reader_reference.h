/* SPDX-License-Identifier: Apache-2.0 */
/** A decoder-only transformer in plain double, as its equations are written: what the reader's model is compared with.
 */
#ifndef LODE_TESTS_READER_REFERENCE_H
#define LODE_TESTS_READER_REFERENCE_H

#include <stdint.h>

typedef struct reference *reference_h;

/** Read a model's folder; ends the program if it cannot. Knows what the reader's model knows, and believes the files.
 */
reference_h reference_open(const char *folder);
void reference_close(reference_h *reference);
uint32_t reference_vocabulary(reference_h reference);
/** One more token at the next position: its logits (vocabulary), borrowed until the next. */
const double *reference_next(reference_h reference, uint32_t token);
/** The same logits again. */
const double *reference_last(reference_h reference);

#endif
