# SPDX-License-Identifier: Apache-2.0
# CUDA sources as objects of a C library. They are compiled by commands of our own and not by CMake's language CUDA: with
# it every program that has these objects would be linked as C++ is, with the C++ runtime; the host side needs none.
#
# Sets LODE_HAVE_CUDA and, if it is ON, LODE_CUDA_NVCC, LODE_CUDA_RUNTIME (what to link) and lode_cuda_objects().
set(LODEMARK_CUDA "try" CACHE STRING "Build the CUDA backend: yes (needs nvcc), try, no")
# Code for 80 runs on 86 and 89 too, and PTX for 90 on what comes later: enough for a build that is made for its tests.
set(LODEMARK_CUDA_ARCHITECTURES "" CACHE STRING
    "Code for these, PTX for the highest; empty: 80;86;89;90;100 as far as nvcc knows them, with LODEMARK_TESTS=yes 80;90")
option(LODEMARK_GPU_TESTS "Run the device tests on this machine's GPU too" OFF)
set(LODE_HAVE_CUDA OFF)
set(LODE_CUDA_WHY_NOT "LODEMARK_CUDA=${LODEMARK_CUDA}")

# Is there an nvcc that compiles, with the host compiler that it finds, and a static runtime beside it?
function(lode_find_cuda)
  find_program(LODEMARK_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT LODEMARK_NVCC)
    set(LODE_CUDA_WHY_NOT "there is no nvcc" PARENT_SCOPE)
    return()
  endif()
  get_filename_component(nvcc ${LODEMARK_NVCC} REALPATH)
  get_filename_component(bin ${nvcc} DIRECTORY)
  find_library(LODEMARK_CUDART libcudart_static.a HINTS ${bin}/.. ENV CUDA_HOME ENV CUDA_PATH
    PATH_SUFFIXES lib64 lib targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib targets/sbsa-linux/lib lib/${CMAKE_LIBRARY_ARCHITECTURE})
  if(NOT LODEMARK_CUDART)
    set(LODE_CUDA_WHY_NOT "${LODEMARK_NVCC} is without libcudart_static.a" PARENT_SCOPE)
    return()
  endif()
  set(probe ${CMAKE_CURRENT_BINARY_DIR}/cuda-probe.cu)
  file(WRITE ${probe} "#include <cuda_runtime.h>\n#include <type_traits>\n"
    "#if CUDART_VERSION < 12000\n#error CUDA 12 or newer is needed\n#endif\n"
    "__global__ void probe(int *x) { *x = 1; }\n")
  execute_process(COMMAND ${LODEMARK_NVCC} -std=c++17 -c ${probe} -o ${probe}.o RESULT_VARIABLE failed OUTPUT_VARIABLE said
    ERROR_VARIABLE said)
  if(failed)
    string(REGEX REPLACE "\n+" " " said "${said}")
    string(SUBSTRING "${said}" 0 300 said)
    set(LODE_CUDA_WHY_NOT "${LODEMARK_NVCC} does not compile (it wants g++): ${said}" PARENT_SCOPE)
    return()
  endif()
  set(LODE_HAVE_CUDA ON PARENT_SCOPE)
endfunction()

if(NOT LODEMARK_CUDA MATCHES "^(no|NO|off|OFF|0)$")
  lode_find_cuda()
  if(NOT LODE_HAVE_CUDA AND NOT LODEMARK_CUDA STREQUAL "try")
    message(FATAL_ERROR "LODEMARK_CUDA=${LODEMARK_CUDA}: ${LODE_CUDA_WHY_NOT}")
  endif()
endif()
if(LODEMARK_GPU_TESTS AND NOT LODE_HAVE_CUDA)
  message(FATAL_ERROR "LODEMARK_GPU_TESTS needs the CUDA backend: ${LODE_CUDA_WHY_NOT}")
endif()
if(NOT LODE_HAVE_CUDA)
  message(STATUS "The CUDA backend is not built: ${LODE_CUDA_WHY_NOT}")
  return()
endif()

execute_process(COMMAND ${LODEMARK_NVCC} --list-gpu-code OUTPUT_VARIABLE codes)
set(lode_cuda_architectures ${LODEMARK_CUDA_ARCHITECTURES})
if(NOT lode_cuda_architectures AND LODEMARK_TESTS STREQUAL "yes")
  set(lode_cuda_architectures 80 90)
elseif(NOT lode_cuda_architectures)
  foreach(level IN ITEMS 80 86 89 90 100)
    if(codes MATCHES "sm_${level}[^0-9a-z]")
      list(APPEND lode_cuda_architectures ${level})
    endif()
  endforeach()
endif()
set(lode_cuda_code "")
set(highest 0)
foreach(level IN LISTS lode_cuda_architectures)
  list(APPEND lode_cuda_code -gencode arch=compute_${level},code=sm_${level})
  if(level MATCHES "^[0-9]+$" AND level GREATER highest)
    set(highest ${level})
  endif()
endforeach()
if(highest GREATER 0)
  list(APPEND lode_cuda_code -gencode arch=compute_${highest},code=compute_${highest})
endif()
message(STATUS "The CUDA backend is built by ${LODEMARK_NVCC} for ${lode_cuda_architectures}")
# Static, so that the library starts on machines without CUDA too, and says there that it lacks a driver.
set(LODE_CUDA_RUNTIME ${LODEMARK_CUDART} rt dl Threads::Threads)

# lode_cuda_objects(<variable> <source>… ): compile them; the objects are in the variable.
# No C++ runtime: no exceptions, no guards of statics. -fmad=false: codes and choices are the same as on processors.
function(lode_cuda_objects variable)
  set(objects "")
  set(host -fPIC -fvisibility=hidden -fno-exceptions -fno-threadsafe-statics -Wall -Wextra -Wno-unused-parameter
           -Wno-missing-field-initializers)
  if(LODEMARK_WERROR)
    list(APPEND host -Werror)
    set(werror -Werror all-warnings)
  endif()
  list(JOIN host "," host)
  foreach(source IN LISTS ARGN)
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
    set(exact "")
    if(name MATCHES "^(query|score|select)$")
      set(exact --fmad=false)
    endif()
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/cuda
      COMMAND ${LODEMARK_NVCC} -std=c++17 -O3 -lineinfo ${lode_cuda_code} ${exact} ${werror} -Xcompiler ${host} -D_GNU_SOURCE
              -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/include -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "nvcc ${name}.cu")
    list(APPEND objects ${object})
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  set(${variable} ${objects} PARENT_SCOPE)
endfunction()
