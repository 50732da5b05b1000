/* The C interface of the etalumis front end: a model written in C, or in anything that calls C, as a probabilistic
 * program. Link with the CMake target etalumis::ppx_c.
 *
 *     static double gaussian(void *data) {
 *         double mu = etalumis_sample(etalumis_normal(1.0, 2.2), "mu", 1, NULL);
 *         etalumis_observe(etalumis_normal(mu, 1.4), NULL, "obs0", NULL);
 *         return mu;
 *     }
 *     int main(void) { return etalumis_serve(gaussian, NULL, "gaussian", "tcp://127.0.0.1:5555"); }
 *
 * Names and addresses may be NULL: unnamed, and the call stack. No function lets a C++ exception out. Where the engine
 * ends an execution early, or a statement is impossible, the model is not left: its further draws come from the prior
 * and nobody records them; a loop that could go on for long asks etalumis_ended(). The statements of an execution
 * belong to the thread that called the model.
 */
#ifndef ETALUMIS_PPX_H
#define ETALUMIS_PPX_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A distribution: a number for each parameter, or an array. Made by the functions below. */
typedef struct etalumis_distribution {
    int family;             /* its number on the wire */
    int rank;               /* of a value: 0 for a single number */
    const int* shape;       /* of a value, `rank` numbers */
    double number[2];       /* the parameters in the order of the schema */
    const double* array[2]; /* parameters that differ by element, row-major, as many as the shape holds; or NULL */
    int categories;         /* of Categorical, whose weights are array[0], category fastest */
} etalumis_distribution;

/* The model: returns its result. `data` is what etalumis_serve was given. */
typedef double (*etalumis_model)(void* data);

/* Serves a model to engines at an address such as "ipc:///tmp/sim" or "tcp://127.0.0.1:5555", for ever. Returns only
 * after an error (1), which it has printed: the address is taken. */
int etalumis_serve(etalumis_model model, void* data, const char* name, const char* address);

/* Draws a random variable. `control` != 0: a network may propose it. */
double etalumis_sample(etalumis_distribution distribution, const char* name, int control, const char* address);

/* Draws an array of independent values into `value`. */
void etalumis_sample_array(etalumis_distribution distribution, double* value, const char* name, int control,
                           const char* address);

/* Conditions the model. `value` NULL: the engine supplies it under this name. */
void etalumis_observe(etalumis_distribution distribution, const double* value, const char* name, const char* address);

/* Records a quantity with the trace: a number where `rank` is 0. */
void etalumis_tag(const double* value, int rank, const int* shape, const char* name, const char* address);

/* Marks that a pass of this rejection loop begins, and that the one which began last was accepted: the loop is over. */
void etalumis_rejection_pass(const char* loop);
void etalumis_rejection_accept(const char* loop);

/* The next uniform number in (0, 1) for a generator that is routed through PPX; works outside of a model, too. */
double etalumis_flat(void);

/* Whether the current execution is over, so that the model may return what it likes. */
int etalumis_ended(void);

/* The model can't go on: the engine is told why. Return from the model soon. */
void etalumis_fail(const char* why);

/* --- the families, parameters in the order of the schema -----------------------------------------------------------
 */

static inline etalumis_distribution etalumis_family(int family, double first, double second) {
    etalumis_distribution made = {0, 0, NULL, {0.0, 0.0}, {NULL, NULL}, 0};
    made.family = family;
    made.number[0] = first;
    made.number[1] = second;
    return made;
}
static inline etalumis_distribution etalumis_normal(double mean, double stddev) {
    return etalumis_family(1, mean, stddev);
}
static inline etalumis_distribution etalumis_uniform(double low, double high) {
    return etalumis_family(2, low, high);
}
static inline etalumis_distribution etalumis_categorical(int categories, const double* weights) {
    etalumis_distribution made = etalumis_family(3, 0.0, 0.0);
    made.categories = categories;
    made.array[0] = weights;
    return made;
}
static inline etalumis_distribution etalumis_poisson(double rate) {
    return etalumis_family(4, rate, 0.0);
}
static inline etalumis_distribution etalumis_bernoulli(double probs) {
    return etalumis_family(5, probs, 0.0);
}
static inline etalumis_distribution etalumis_beta(double concentration1, double concentration0) {
    return etalumis_family(6, concentration1, concentration0);
}
static inline etalumis_distribution etalumis_exponential(double rate) {
    return etalumis_family(7, rate, 0.0);
}
static inline etalumis_distribution etalumis_gamma(double concentration, double rate) {
    return etalumis_family(8, concentration, rate);
}
static inline etalumis_distribution etalumis_lognormal(double loc, double scale) {
    return etalumis_family(9, loc, scale);
}
static inline etalumis_distribution etalumis_binomial(double total_count, double probs) {
    return etalumis_family(10, total_count, probs);
}
static inline etalumis_distribution etalumis_weibull(double scale, double concentration) {
    return etalumis_family(11, scale, concentration);
}

/* Independent values of a family in an array of this shape. A parameter that is NULL keeps the single number it has. */
static inline etalumis_distribution etalumis_array(etalumis_distribution of, int rank, const int* shape,
                                                   const double* first, const double* second) {
    of.rank = rank;
    of.shape = shape;
    if (first != NULL) of.array[0] = first;
    if (second != NULL) of.array[1] = second;
    return of;
}

#ifdef __cplusplus
}
#endif

#endif /* ETALUMIS_PPX_H */
