# The C++ front end of etalumis:
#
#     find_package(etalumis REQUIRED)             # cmake -Detalumis_DIR="$(python -m etalumis.ppx --cmakedir)"
#     add_executable(sim sim.cpp)
#     target_link_libraries(sim PRIVATE etalumis::ppx)
#
# Targets: etalumis::ppx          C++ headers
#          etalumis::ppx_c        the C interface, where the project enables CXX
#          etalumis::ppx_fortran  the Fortran module over it, where the project enables CXX and Fortran
cmake_minimum_required(VERSION 3.16)

get_filename_component(_etalumis_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

find_path(etalumis_ZMQ_INCLUDE_DIR zmq.h)
find_library(etalumis_ZMQ_LIBRARY zmq)
mark_as_advanced(etalumis_ZMQ_INCLUDE_DIR etalumis_ZMQ_LIBRARY)
if(NOT etalumis_ZMQ_INCLUDE_DIR OR NOT etalumis_ZMQ_LIBRARY)
  set(etalumis_FOUND FALSE)
  set(etalumis_NOT_FOUND_MESSAGE
      "ZeroMQ's header zmq.h and library were not found; install them (Debian: libzmq3-dev, Fedora: zeromq-devel)")
  return()
endif()

if(NOT TARGET etalumis::ppx)
  add_library(etalumis::ppx INTERFACE IMPORTED)
  set_target_properties(etalumis::ppx PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_etalumis_root}/include;${etalumis_ZMQ_INCLUDE_DIR}"
    INTERFACE_COMPILE_FEATURES cxx_std_17
    INTERFACE_LINK_LIBRARIES "${etalumis_ZMQ_LIBRARY};${CMAKE_DL_LIBS}")
  # Equal numbers everywhere (no fused operations), a frame for every call in the chain that names a statement, and
  # symbols for these frames. Without a build type CMake would not optimise.
  target_compile_options(etalumis::ppx INTERFACE
    -ffp-contract=off -fno-optimize-sibling-calls
    $<$<OR:$<C_COMPILER_ID:GNU>,$<CXX_COMPILER_ID:GNU>>:-fno-crossjumping>
    $<$<STREQUAL:$<CONFIG>,>:-O2>)
  target_link_options(etalumis::ppx INTERFACE -rdynamic)
endif()

if(CMAKE_CXX_COMPILER AND NOT TARGET etalumis::ppx_c)
  add_library(etalumis_ppx_c STATIC EXCLUDE_FROM_ALL "${_etalumis_root}/src/ppx.cpp")
  set_target_properties(etalumis_ppx_c PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(etalumis_ppx_c PUBLIC etalumis::ppx)
  add_library(etalumis::ppx_c ALIAS etalumis_ppx_c)
endif()

if(CMAKE_CXX_COMPILER AND CMAKE_Fortran_COMPILER AND NOT TARGET etalumis::ppx_fortran)
  set(_etalumis_modules "${CMAKE_CURRENT_BINARY_DIR}/etalumis_modules")
  add_library(etalumis_ppx_fortran STATIC EXCLUDE_FROM_ALL "${_etalumis_root}/fortran/etalumis_ppx.f90")
  set_target_properties(etalumis_ppx_fortran PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    Fortran_MODULE_DIRECTORY "${_etalumis_modules}")
  target_include_directories(etalumis_ppx_fortran PUBLIC "${_etalumis_modules}")
  target_link_libraries(etalumis_ppx_fortran PUBLIC etalumis_ppx_c)
  add_library(etalumis::ppx_fortran ALIAS etalumis_ppx_fortran)
endif()

set(etalumis_FOUND TRUE)
