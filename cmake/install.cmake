# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down: library, header, command, pkg-config file, CMake package.
install(TARGETS lodemark EXPORT lodemark
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS lodemark_command lodemarkd RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
# What lodemark ask takes for granted: the small model. And the one for lists.
install(DIRECTORY reader/model reader/model-lists DESTINATION ${CMAKE_INSTALL_DATADIR}/lodemark)
install(DIRECTORY slurm DESTINATION ${CMAKE_INSTALL_DATADIR}/lodemark USE_SOURCE_PERMISSIONS)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/lodemark)
install(EXPORT lodemark NAMESPACE lodemark:: FILE lodemark-config.cmake DESTINATION ${package})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/lodemark-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lodemark-config-version.cmake DESTINATION ${package})

# The prefix is worked out from the file's own place, so that an installed tree can be moved.
file(RELATIVE_PATH pc_to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/lodemark.pc.in lodemark.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lodemark.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
