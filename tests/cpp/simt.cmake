# Tests of CUDA kernels on the host executor, label simt. Target simt_tests builds them and nothing else.
if(DLK_SIMT_MODE STREQUAL "race")
  set(orders forward)  # what this build finds does not depend on the order
else()
  set(orders forward reverse random:1 random:2 random:3)
endif()
add_custom_target(simt_tests)

# Adds program `name`, made of `source`, which may contain kernels.
function(dlk_simt_program name source)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE dlk_simt)
  target_compile_options(${name} PRIVATE ${DLK_SIMT_KERNEL_FLAGS})
  add_dependencies(simt_tests ${name})
endfunction()

foreach(source ${DLK_SIMT_TEST_SOURCES})
  get_filename_component(name ${source} NAME_WE)
  dlk_simt_program(${name} ${source})
  foreach(order ${orders})
    add_test(NAME ${name}_${order} COMMAND ${name})
    set_tests_properties(${name}_${order} PROPERTIES ENVIRONMENT "DLKERNELS_SIMT_ORDER=${order}" LABELS simt)
  endforeach()
endforeach()
