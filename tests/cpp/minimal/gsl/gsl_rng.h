/* As much of the GNU Scientific Library's interface as the adaptor needs. */
#pragma once

#include <cstddef>

extern "C" {

typedef struct {
    const char* name;
    unsigned long int max;
    unsigned long int min;
    std::size_t size;
    void (*set)(void* state, unsigned long int seed);
    unsigned long int (*get)(void* state);
    double (*get_double)(void* state);
} gsl_rng_type;

typedef struct {
    const gsl_rng_type* type;
    void* state;
} gsl_rng;
}
