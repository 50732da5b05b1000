/* Models for the tests of the C interface: `interface MODEL ADDRESS`. */
#include <etalumis/ppx.h>
#include <stdio.h>
#include <string.h>

/* Every family, alone and in an array. */
static double families(void* data) {
    static const double weights[6] = {1.0, 2.0, 3.0, 3.0, 0.0, 1.0};
    static const double means[6] = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}, rates[3] = {3.0, 30.0, 300.0};
    static const int grid[2] = {2, 3}, two = 2, three = 3;
    const etalumis_distribution alone[11] = {
        etalumis_normal(1.0, 2.0),     etalumis_uniform(-1.0, 1.0), etalumis_categorical(3, weights),
        etalumis_poisson(20.0),        etalumis_bernoulli(0.3),     etalumis_beta(2.0, 0.5),
        etalumis_exponential(0.2),     etalumis_gamma(0.4, 2.0),    etalumis_lognormal(0.5, 0.25),
        etalumis_binomial(100.0, 0.4), etalumis_weibull(2.0, 3.0)};
    double sum = *(double*)data, image[6], kinds[2], counts[3];
    for (int i = 0; i < 11; ++i) sum += etalumis_sample(alone[i], i == 0 ? "first" : NULL, i != 1, NULL);
    etalumis_sample_array(etalumis_array(etalumis_normal(0.0, 0.5), 2, grid, means, NULL), image, "image", 1, "here");
    etalumis_sample_array(etalumis_array(etalumis_categorical(3, weights), 1, &two, NULL, NULL), kinds, NULL, 1, NULL);
    etalumis_sample_array(etalumis_array(etalumis_poisson(0.0), 1, &three, rates, NULL), counts, NULL, 1, NULL);
    etalumis_observe(etalumis_array(etalumis_normal(0.0, 1.0), 2, grid, image, NULL), NULL, "y", NULL);
    etalumis_observe(etalumis_poisson(4.0), &kinds[0], NULL, NULL);
    etalumis_tag(image, 2, grid, "image", NULL);
    return sum + etalumis_flat();
}

static double impossible(void* data) {
    (void)data;
    return etalumis_sample(etalumis_normal(0.0, -1.0), NULL, 1, NULL);
}

static double gives_up(void* data) {
    (void)data;
    etalumis_fail("the beam is off");
    return 0.0;
}

static double endless(void* data) {
    (void)data;
    while (!etalumis_ended()) etalumis_sample(etalumis_uniform(0.0, 1.0), NULL, 1, NULL);
    return 0.0;
}

/* The loop of marked_loops.cpp. */
static double marked(void* data) {
    double m = etalumis_sample(etalumis_uniform(0.0, 1.0), "m", 1, NULL), x;
    (void)data;
    do {
        etalumis_rejection_pass("x");
        x = etalumis_sample(etalumis_uniform(0.0, 1.0), "x", 1, NULL);
    } while (x >= 0.2 + 0.8 * m);
    etalumis_rejection_accept("x");
    etalumis_observe(etalumis_normal(x, 0.1), NULL, "y", NULL);
    return x;
}

int main(int argc, char** argv) {
    double hundred = 100.0;
    etalumis_model model = NULL;
    if (argc < 3) return 2;
    if (strcmp(argv[1], "families") == 0) model = families;
    if (strcmp(argv[1], "impossible") == 0) model = impossible;
    if (strcmp(argv[1], "gives_up") == 0) model = gives_up;
    if (strcmp(argv[1], "endless") == 0) model = endless;
    if (strcmp(argv[1], "marked") == 0) model = marked;
    return model == NULL ? 2 : etalumis_serve(model, &hundred, argv[1], argv[2]);
}
