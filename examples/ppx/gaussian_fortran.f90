! A Gaussian with unknown mean, in Fortran.
module gaussian_model
    use, intrinsic :: iso_c_binding, only: c_double
    use etalumis_ppx
    implicit none
contains
    real(c_double) function gaussian() bind(c) result(mu)
        mu = sample(normal(1.0_c_double, sqrt(5.0_c_double)), "mu")
        call observe(normal(mu, sqrt(2.0_c_double)), "obs0")
        call observe(normal(mu, sqrt(2.0_c_double)), "obs1")
        call tag(mu**2, "mu_squared")
    end function
end module

program simulator
    use etalumis_ppx, only: serve
    use gaussian_model, only: gaussian
    implicit none
    character(len=1024) :: address
    address = "tcp://*:5555"
    if (command_argument_count() > 0) call get_command_argument(1, address)
    call serve(gaussian, "gaussian", address)
end program
