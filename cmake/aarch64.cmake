# Toolchain file for AArch64 on any machine: Debian's cross compiler (package g++-aarch64-linux-gnu); what is built runs
# under qemu (package qemu-user-static), which finds the C and C++ libraries beside the compiler's.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc) # GoogleTest asks for one
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
