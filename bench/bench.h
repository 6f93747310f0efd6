/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file bench.h
 * @brief What `lodemark bench` runs. Each takes the words after its name and gives the exit code back.
 */
#ifndef LODE_BENCH_H
#define LODE_BENCH_H

/** Attention steps over a context shared by all ranks: time, bytes, and accuracy against dense in double. */
int lode_bench_step(int argc, char **argv);
/** Fetching alone, beside its floor and its rivals. */
int lode_bench_fetch(int argc, char **argv);
/** This machine's arithmetic, kernel by kernel, beside its floors. */
int lode_bench_kernels(int argc, char **argv);
/** A GPU's operations beside its floors. */
int lode_bench_gpu(int argc, char **argv);
/** Kinds of landmarks side by side, by the softmax mass that they find. */
int lode_bench_landmarks(int argc, char **argv);
/** Choosing by the index of two levels beside choosing from all landmarks, and beside other libraries. */
int lode_bench_index(int argc, char **argv);
/** Bytes moved against what is kept of attention, by policy and budget. */
int lode_bench_frontier(int argc, char **argv);
/** A model's score on samples of Text2JSON, by policy and budget. */
int lode_bench_text2json(int argc, char **argv);
/** A model that hears, thinks and speaks at once: how soon, how well, what moves. */
int lode_bench_streams(int argc, char **argv);
/** Generated keys, values and queries to a capture file. */
int lode_generate(int argc, char **argv);
/** The transform in front of the quantiser, from captures. */
int lode_calibrate(int argc, char **argv);
/** Samples of long-text tasks, and scores of a model's outputs. */
int lode_text2json_make_main(int argc, char **argv);
int lode_text2json_score_main(int argc, char **argv);
int lode_multi_needle_make_main(int argc, char **argv);
int lode_multi_needle_score_main(int argc, char **argv);
int lode_html_to_tsv_make_main(int argc, char **argv);
int lode_html_to_tsv_score_main(int argc, char **argv);

#endif
