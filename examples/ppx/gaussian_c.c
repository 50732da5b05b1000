/* A Gaussian with unknown mean, in C. */
#include <etalumis/ppx.h>
#include <math.h>

double gaussian(void* data) {
    (void)data;
    const double mu = etalumis_sample(etalumis_normal(1.0, sqrt(5.0)), "mu", 1, NULL);
    const double squared = mu * mu;
    etalumis_observe(etalumis_normal(mu, sqrt(2.0)), NULL, "obs0", NULL);
    etalumis_observe(etalumis_normal(mu, sqrt(2.0)), NULL, "obs1", NULL);
    etalumis_tag(&squared, 0, NULL, "mu_squared", NULL);
    return mu;
}

int main(int argc, char** argv) {
    return etalumis_serve(gaussian, NULL, "gaussian", argc > 1 ? argv[1] : "tcp://*:5555");
}
