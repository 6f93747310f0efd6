/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LODE_LAUNCH_CAPTURE_H
#define LODE_LAUNCH_CAPTURE_H

/** Keys, values and queries of a model's run to a capture file. */
int lode_capture_main(int argc, char **argv);

#endif
