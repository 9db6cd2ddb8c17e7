use std::alloc::{GlobalAlloc, Layout, System};
struct A;
thread_local!{ static IN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) }; }
unsafe impl GlobalAlloc for A {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        if l.size() > 400_000 && !IN.with(|i| i.replace(true)) {
            eprintln!("ALLOC {}\n{}", l.size(), std::backtrace::Backtrace::force_capture());
            IN.with(|i| i.set(false));
        }
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) { unsafe { System.dealloc(p, l) } }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 { if n > 400_000 { eprintln!("REALLOC {n}"); } unsafe { System.realloc(p, l, n) } }
}
#[global_allocator] static G: A = A;
#[tokio::test(flavor = "multi_thread")]
#[ignore]
async fn figures() {
    let dir = tempfile::tempdir_in("/work").unwrap();
    let k = coracle_keyspace::Keyspace::open(coracle_keyspace::Config::new(dir.path().join("x"))).await.unwrap();
    k.shutdown().await;
}
