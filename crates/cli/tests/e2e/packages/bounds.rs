//! What an install may take, and what of it is left when it ends early.

use std::time::{Duration, Instant};

use super::{Shop, Tool, bad_index};
use crate::client::{Home, processes_named};
use crate::index::{Index, Manner, bomb, wheel};

#[tokio::test]
async fn an_index_that_hangs_ends_with_the_time_for_installing() {
    let index = bad_index();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url()), ("INSTALL_TIMEOUT", "0.8")]);
    assert_eq!(shop.refusal("slow-one").await.0, "install_timeout");
    nothing_installs(&shop).await;
}

/// No installer of the shop's is alive.
async fn nothing_installs(shop: &Shop) {
    let started = Instant::now();
    let marker = shop.folder.path().display().to_string();
    while !processes_named(&format!("{marker}/packages/work")).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", processes_named(&marker));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_the_installer_with_it() {
    let index = bad_index();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url())]);
    let marker = shop.folder.path().join("packages/work").display().to_string();
    let call = shop.run(&["slow-one"], "1");
    let installing = async {
        while !processes_named(&marker).iter().any(|line| line.contains("wanted.txt")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = call => panic!("{result}"),
        () = installing => {}
    }
    nothing_installs(&shop).await;
    let left = || std::fs::read_dir(&marker).unwrap().flatten().any(|entry| entry.path().join("target").exists());
    let started = Instant::now();
    while left() {
        assert!(started.elapsed() < Duration::from_secs(20), "the folder of the install is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shop.server.still_works().await;
}

#[tokio::test]
async fn a_wheel_of_two_gigabytes_of_nothing_is_not_unpacked() {
    let index = Index::start();
    index.add("bomb-one", "bomb_one-1.0-py3-none-any.whl", bomb("bomb-one"), Manner::Well);
    for tool in [Tool::Uv, Tool::Pip] {
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &index.url()), ("MAX_INSTALL_MB", "64")]);
        let (reason, message) = shop.refusal("bomb-one").await;
        assert_eq!(reason, "too_large", "{tool:?}: {message}");
        let left = || {
            let left = std::process::Command::new("du").arg("-sm").arg(shop.folder.path()).output().unwrap();
            let left = String::from_utf8(left.stdout).unwrap();
            left.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        // What is left of it goes behind the call.
        let started = Instant::now();
        while left() >= 20 {
            assert!(started.elapsed() < Duration::from_secs(20), "{tool:?}: {} MB are left", left());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn calls_that_want_the_same_set_at_once_install_it_once() {
    let index = Index::start();
    index.add_module("shared-one", "1.0", &[]);
    let shop = std::sync::Arc::new(Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url())]));
    let code = "import shared_one; shared_one.__version__";
    let run = |requirement: &'static str| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.run(&[requirement], code).await })
    };
    let calls = ["shared-one", "shared-one", "shared-one>=1", "Shared_One", "shared-one==1.0"].map(run);
    for call in calls {
        let result = call.await.unwrap();
        assert_eq!(result["result"], "'1.0'", "{result}");
    }
    assert_eq!(std::fs::read_dir(shop.folder.path().join("packages/sets")).unwrap().count(), 1);
    assert_eq!(index.times_served("shared_one-1.0-py3-none-any.whl"), 1);
}

/// What no archive makes smaller than a half.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let words = (0..bytes.div_ceil(16)).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ (state >> 33))
    });
    words.collect()
}

/// C17a: each was charged for the other's downloads, and took them away from it when they were too many.
#[tokio::test]
async fn installs_at_once_are_not_charged_for_one_another() {
    let (index, large) = (Index::start(), noise(4 << 20));
    let add = |name: &str, manner: Manner| {
        let module = name.replace('-', "_");
        let bytes = wheel(name, "1.0", &[], &[(&format!("{module}.py"), &format!("# {large}"))]);
        index.add(name, &format!("{module}-1.0-py3-none-any.whl"), bytes, manner);
    };
    let others = ["one-other", "two-others", "three-others", "four-others", "five-others"];
    add("held-one", Manner::Held);
    for name in others {
        add(name, Manner::Well);
    }
    let url = index.url();
    // Each by itself takes about 8 MB, with its downloads.
    let settings = [("PACKAGE_INDEX", &*url), ("MAX_INSTALL_MB", "16"), ("INSTALL_TIMEOUT", "100")];
    let shop = Shop::open(Home::Caller, Tool::Uv, &settings);
    let beside = async {
        while !index.serves("held_one-1.0-py3-none-any.whl") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for name in others {
            let result = shop.run(&[name], "1").await;
            assert_eq!(result["success"], true, "{name}: {result}");
        }
        index.release();
    };
    let (held, ()) = tokio::join!(shop.run(&["held-one"], "import held_one"), beside);
    assert_eq!(held["success"], true, "{held}");
}
