//! The lock and the atomic number of a room; in a model of the tests, those whose interleavings loom explores.

#[cfg(not(test))]
pub(super) use parking_lot::Mutex;
#[cfg(not(test))]
pub(super) use std::sync::atomic::AtomicU64;

#[cfg(test)]
pub(super) use model::{AtomicU64, Mutex};

#[cfg(test)]
pub(crate) mod model {
    //! Loom's types panic outside a model, so each value is of the kind that the place of its making
    //! needs.

    use std::cell::Cell;
    use std::mem;
    use std::ops::{Deref, DerefMut};
    use std::sync::Arc;
    use std::sync::atomic::{self, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    use loom::sync::Condvar;
    use loom::thread::{self, JoinHandle};

    thread_local! {
        /// Whether a model runs; loom runs all threads of a model on one.
        static IS_MODEL: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `model` once for each interleaving of its threads; panics where one of them panics, or where
    /// all that are left wait for ever.
    pub(crate) fn explore(model: impl Fn() + Send + Sync + 'static) {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                IS_MODEL.set(false);
            }
        }
        IS_MODEL.set(true);
        let _reset = Reset;
        loom::model(model);
    }

    /// Starts a thread of a model.
    pub(crate) fn spawn<T: Send + 'static>(
        thread: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        const STACK: usize = 128 * 1024;
        let builder = thread::Builder::new().stack_size(STACK);
        builder.spawn(thread).unwrap()
    }

    /// Polls a task, and again each time that it was woken.
    pub(crate) fn block_on<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        // Loom forgets an `unpark` of a thread that waits for a lock.
        #[derive(Default)]
        struct Woken(loom::sync::Mutex<bool>, Condvar);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                *self.0.lock().unwrap() = true;
                self.1.notify_one();
            }
        }
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        loop {
            if let Poll::Ready(value) = poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            let mut is_woken = woken.0.lock().unwrap();
            while !mem::take(&mut *is_woken) {
                is_woken = woken.1.wait(is_woken).unwrap();
            }
        }
    }

    #[derive(Debug)]
    pub(crate) enum Mutex<T> {
        Real(parking_lot::Mutex<T>),
        Model(loom::sync::Mutex<T>),
    }

    pub(crate) enum Guard<'a, T> {
        Real(parking_lot::MutexGuard<'a, T>),
        Model(loom::sync::MutexGuard<'a, T>),
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            match IS_MODEL.get() {
                true => Self::Model(loom::sync::Mutex::new(value)),
                false => Self::Real(parking_lot::Mutex::new(value)),
            }
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            match self {
                Self::Real(mutex) => Guard::Real(mutex.lock()),
                Self::Model(mutex) => Guard::Model(mutex.lock().unwrap()),
            }
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match self {
                Self::Real(guard) => guard,
                Self::Model(guard) => guard,
            }
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match self {
                Self::Real(guard) => guard,
                Self::Model(guard) => guard,
            }
        }
    }

    #[derive(Debug)]
    pub(crate) enum AtomicU64 {
        Real(atomic::AtomicU64),
        Model(loom::sync::atomic::AtomicU64),
    }

    impl AtomicU64 {
        pub(crate) fn load(&self, ordering: Ordering) -> u64 {
            match self {
                Self::Real(number) => number.load(ordering),
                Self::Model(number) => number.load(ordering),
            }
        }

        pub(crate) fn store(&self, value: u64, ordering: Ordering) {
            match self {
                Self::Real(number) => number.store(value, ordering),
                Self::Model(number) => number.store(value, ordering),
            }
        }
    }

    impl Default for AtomicU64 {
        fn default() -> Self {
            match IS_MODEL.get() {
                true => Self::Model(loom::sync::atomic::AtomicU64::new(0)),
                false => Self::Real(atomic::AtomicU64::new(0)),
            }
        }
    }
}
