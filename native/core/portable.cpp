// What lets a module that was built beside a newer C library run beside glibc 2.28 (FOVEAL_PORTABLE in CMakeLists.txt).
// Not needed where the wheel is built in an image of that age, as the published ones are.
#if defined(__x86_64__) && defined(__linux__)
#include <pthread.h>
#include <sys/stat.h>

// Calls of these names, those of the C++ library that is linked in included, come here (the linker's --wrap), and go on to
// the versions that every glibc of this architecture has.
#define FOVEAL_OLDER(name, version) __asm__(".symver older_" #name "," #name "@" version)

extern "C" {
FOVEAL_OLDER(pthread_create, "GLIBC_2.2.5");
FOVEAL_OLDER(pthread_join, "GLIBC_2.2.5");
FOVEAL_OLDER(pthread_once, "GLIBC_2.2.5");
FOVEAL_OLDER(__fxstat64, "GLIBC_2.2.5");
int older_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int older_pthread_join(pthread_t, void**);
int older_pthread_once(pthread_once_t*, void (*)());
int older___fxstat64(int, int, struct stat64*);

#define FOVEAL_HIDDEN __attribute__((visibility("hidden")))

FOVEAL_HIDDEN int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* with) {
  return older_pthread_create(thread, how, run, with);
}

FOVEAL_HIDDEN int __wrap_pthread_join(pthread_t thread, void** result) { return older_pthread_join(thread, result); }

FOVEAL_HIDDEN int __wrap_pthread_once(pthread_once_t* once, void (*run)()) { return older_pthread_once(once, run); }

FOVEAL_HIDDEN int __wrap_fstat64(int file, struct stat64* found) {
  constexpr int kVersion = 1;  // of struct stat64 on x86-64
  return older___fxstat64(kVersion, file, found);
}

// libstdc++'s headers read this variable of glibc 2.32 and later to leave out atomic operations while there is one thread.
// With one of our own they never leave them out.
FOVEAL_HIDDEN char __libc_single_threaded = 0;
}
#endif
