! The Fortran interface of the etalumis front end, over its C interface (etalumis/ppx.h, which explains the statements).
! Link with the CMake target etalumis::ppx_fortran.
!
!     real(c_double) function gaussian() bind(c) result(mu)
!         mu = sample(normal(1.0d0, 2.2d0), "mu")
!         call observe(normal(mu, 1.4d0), "obs0")
!     end function
!
!     call serve(gaussian, "gaussian", "tcp://*:5555")
module etalumis_ppx
    use, intrinsic :: iso_c_binding
    implicit none
    private

    public :: distribution, serve, sample, sample_array, observe, tag, flat, ended, fail
    public :: rejection_pass, rejection_accept
    public :: normal, uniform, categorical, poisson, bernoulli, beta, exponential, gamma_distribution, lognormal
    public :: binomial, weibull, array_of

    !> A distribution; made by the functions named after the families.
    type, bind(c) :: distribution
        integer(c_int) :: family = 0
        integer(c_int) :: rank = 0
        type(c_ptr) :: shape = c_null_ptr
        real(c_double) :: number(2) = 0.0_c_double
        type(c_ptr) :: array(2) = c_null_ptr
        integer(c_int) :: categories = 0
    end type

    abstract interface
        !> A model returns its result.
        function model_function() bind(c) result(answer)
            import :: c_double
            real(c_double) :: answer
        end function
    end interface

    interface tag
        module procedure tag_number, tag_vector
    end interface

    interface
        function c_serve(model, data, name, address) bind(c, name="etalumis_serve") result(status)
            import :: c_int, c_ptr, c_funptr, c_char
            type(c_funptr), value :: model
            type(c_ptr), value :: data
            character(kind=c_char), intent(in) :: name(*), address(*)
            integer(c_int) :: status
        end function
        function c_sample(d, name, control, address) bind(c, name="etalumis_sample") result(drawn)
            import :: distribution, c_int, c_ptr, c_double, c_char
            type(distribution), value :: d
            character(kind=c_char), intent(in) :: name(*)
            integer(c_int), value :: control
            type(c_ptr), value :: address
            real(c_double) :: drawn
        end function
        subroutine c_sample_array(d, drawn, name, control, address) bind(c, name="etalumis_sample_array")
            import :: distribution, c_int, c_ptr, c_double, c_char
            type(distribution), value :: d
            real(c_double), intent(out) :: drawn(*)
            character(kind=c_char), intent(in) :: name(*)
            integer(c_int), value :: control
            type(c_ptr), value :: address
        end subroutine
        subroutine c_observe(d, observed, name, address) bind(c, name="etalumis_observe")
            import :: distribution, c_ptr, c_char
            type(distribution), value :: d
            type(c_ptr), value :: observed
            character(kind=c_char), intent(in) :: name(*)
            type(c_ptr), value :: address
        end subroutine
        subroutine c_tag(tagged, rank, shape, name, address) bind(c, name="etalumis_tag")
            import :: c_int, c_ptr, c_double, c_char
            real(c_double), intent(in) :: tagged(*)
            integer(c_int), value :: rank
            integer(c_int), intent(in) :: shape(*)
            character(kind=c_char), intent(in) :: name(*)
            type(c_ptr), value :: address
        end subroutine
        subroutine c_rejection_pass(loop) bind(c, name="etalumis_rejection_pass")
            import :: c_char
            character(kind=c_char), intent(in) :: loop(*)
        end subroutine
        subroutine c_rejection_accept(loop) bind(c, name="etalumis_rejection_accept")
            import :: c_char
            character(kind=c_char), intent(in) :: loop(*)
        end subroutine
        function c_ended() bind(c, name="etalumis_ended") result(answer)
            import :: c_int
            integer(c_int) :: answer
        end function
        subroutine c_fail(why) bind(c, name="etalumis_fail")
            import :: c_char
            character(kind=c_char), intent(in) :: why(*)
        end subroutine
        !> The next uniform number in (0, 1) for a generator that is routed through PPX.
        function flat() bind(c, name="etalumis_flat") result(number)
            import :: c_double
            real(c_double) :: number
        end function
    end interface

contains

    !> Serves a model to engines at an address, for ever; returns where the address can't be used.
    subroutine serve(model, name, address)
        procedure(model_function) :: model
        character(len=*), intent(in) :: name, address
        integer(c_int) :: status
        status = c_serve(c_funloc(call_model), transfer(c_funloc(model), c_null_ptr), c_text(name), c_text(address))
        if (status /= 0) error stop 1
    end subroutine

    !> What the C side calls: the model's own address is the data.
    function call_model(data) bind(c) result(answer)
        type(c_ptr), value :: data
        real(c_double) :: answer
        procedure(model_function), pointer :: model
        call c_f_procpointer(transfer(data, c_null_funptr), model)
        answer = model()
    end function

    !> Draws a random variable; with control=.false. no network proposes it.
    function sample(d, name, control) result(drawn)
        type(distribution), intent(in) :: d
        character(len=*), intent(in), optional :: name
        logical, intent(in), optional :: control
        real(c_double) :: drawn
        drawn = c_sample(d, c_text(name), flag(control), c_null_ptr)
    end function

    !> Draws an array of independent values.
    subroutine sample_array(d, drawn, name, control)
        type(distribution), intent(in) :: d
        real(c_double), intent(out) :: drawn(*)
        character(len=*), intent(in), optional :: name
        logical, intent(in), optional :: control
        call c_sample_array(d, drawn, c_text(name), flag(control), c_null_ptr)
    end subroutine

    !> Conditions the model; without `observed` the engine supplies the value under this name.
    subroutine observe(d, name, observed)
        type(distribution), intent(in) :: d
        character(len=*), intent(in), optional :: name
        real(c_double), intent(in), optional, target :: observed(*)
        type(c_ptr) :: place
        place = c_null_ptr
        if (present(observed)) place = c_loc(observed)
        call c_observe(d, place, c_text(name), c_null_ptr)
    end subroutine

    !> Records a quantity with the trace.
    subroutine tag_number(tagged, name)
        real(c_double), intent(in) :: tagged
        character(len=*), intent(in) :: name
        call c_tag([tagged], 0_c_int, [integer(c_int) ::], c_text(name), c_null_ptr)
    end subroutine

    subroutine tag_vector(tagged, name)
        real(c_double), intent(in) :: tagged(:)
        character(len=*), intent(in) :: name
        call c_tag(tagged, 1_c_int, [int(size(tagged), c_int)], c_text(name), c_null_ptr)
    end subroutine

    !> Marks that a pass of this rejection loop begins.
    subroutine rejection_pass(loop)
        character(len=*), intent(in) :: loop
        call c_rejection_pass(c_text(loop))
    end subroutine

    !> Marks that the pass which began last was accepted: the rejection loop is over.
    subroutine rejection_accept(loop)
        character(len=*), intent(in) :: loop
        call c_rejection_accept(c_text(loop))
    end subroutine

    !> Whether the current execution is over, so that the model may return what it likes.
    function ended() result(answer)
        logical :: answer
        answer = c_ended() /= 0
    end function

    !> The model can't go on: the engine is told why. Return from the model soon.
    subroutine fail(why)
        character(len=*), intent(in) :: why
        call c_fail(c_text(why))
    end subroutine

    ! --- the families, parameters in the order of the schema --------------------------------------------------------

    type(distribution) function normal(mean, stddev) result(d)
        real(c_double), intent(in) :: mean, stddev
        d = distribution(family=1, number=[mean, stddev])
    end function

    type(distribution) function uniform(low, high) result(d)
        real(c_double), intent(in) :: low, high
        d = distribution(family=2, number=[low, high])
    end function

    !> Values count from 0. The weights must stay where they are until the distribution has been used.
    type(distribution) function categorical(weights) result(d)
        real(c_double), intent(in), target, contiguous :: weights(:)
        d = distribution(family=3, array=[c_loc(weights), c_null_ptr], categories=size(weights))
    end function

    type(distribution) function poisson(rate) result(d)
        real(c_double), intent(in) :: rate
        d = distribution(family=4, number=[rate, 0.0_c_double])
    end function

    type(distribution) function bernoulli(probs) result(d)
        real(c_double), intent(in) :: probs
        d = distribution(family=5, number=[probs, 0.0_c_double])
    end function

    type(distribution) function beta(concentration1, concentration0) result(d)
        real(c_double), intent(in) :: concentration1, concentration0
        d = distribution(family=6, number=[concentration1, concentration0])
    end function

    type(distribution) function exponential(rate) result(d)
        real(c_double), intent(in) :: rate
        d = distribution(family=7, number=[rate, 0.0_c_double])
    end function

    !> Not `gamma`, which is an intrinsic function.
    type(distribution) function gamma_distribution(concentration, rate) result(d)
        real(c_double), intent(in) :: concentration, rate
        d = distribution(family=8, number=[concentration, rate])
    end function

    type(distribution) function lognormal(loc, scale) result(d)
        real(c_double), intent(in) :: loc, scale
        d = distribution(family=9, number=[loc, scale])
    end function

    type(distribution) function binomial(total_count, probs) result(d)
        real(c_double), intent(in) :: total_count, probs
        d = distribution(family=10, number=[total_count, probs])
    end function

    type(distribution) function weibull(scale, concentration) result(d)
        real(c_double), intent(in) :: scale, concentration
        d = distribution(family=11, number=[scale, concentration])
    end function

    !> Independent values of a family in an array. The shape is in C order: the last axis runs fastest. Parameters that
    !> differ by element are given as flat arrays, which must stay where they are until the distribution has been used.
    type(distribution) function array_of(d, shape, first, second) result(made)
        type(distribution), intent(in) :: d
        integer(c_int), intent(in), target, contiguous :: shape(:)
        real(c_double), intent(in), target, optional :: first(*), second(*)
        made = d
        made%rank = int(size(shape), c_int)
        made%shape = c_loc(shape)
        if (present(first)) made%array(1) = c_loc(first)
        if (present(second)) made%array(2) = c_loc(second)
    end function

    function c_text(text) result(out)
        character(len=*), intent(in), optional :: text
        character(kind=c_char, len=:), allocatable :: out
        out = c_null_char
        if (present(text)) out = trim(text)//c_null_char
    end function

    integer(c_int) function flag(given) result(set)
        logical, intent(in), optional :: given
        set = 1_c_int
        if (present(given)) set = merge(1_c_int, 0_c_int, given)
    end function

end module etalumis_ppx
