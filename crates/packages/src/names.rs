//! What a name stands for: a module of the standard library, a name to import, a slip of the pen.

use std::collections::BTreeSet;

use crate::pin::Pin;

/// Names to import whose package is called something else, in normal form.
const DISTRIBUTIONS: &[(&str, &str)] = &[
    ("attr", "attrs"),
    ("barcode", "python-barcode"),
    ("bs4", "beautifulsoup4"),
    ("community", "python-louvain"),
    ("crypto", "pycryptodome"),
    ("cryptodome", "pycryptodomex"),
    ("cv2", "opencv-python-headless"),
    ("dateutil", "python-dateutil"),
    ("discord", "discord-py"),
    ("dns", "dnspython"),
    ("docx", "python-docx"),
    ("dotenv", "python-dotenv"),
    ("faiss", "faiss-cpu"),
    ("fitz", "pymupdf"),
    ("git", "gitpython"),
    ("google-protobuf", "protobuf"),
    ("hydra", "hydra-core"),
    ("imblearn", "imbalanced-learn"),
    ("jose", "python-jose"),
    ("jwt", "pyjwt"),
    ("kafka", "kafka-python"),
    ("ldap", "python-ldap"),
    ("magic", "python-magic"),
    ("mpl-toolkits", "matplotlib"),
    ("multipart", "python-multipart"),
    ("mysqldb", "mysqlclient"),
    ("nacl", "pynacl"),
    ("openssl", "pyopenssl"),
    ("osgeo", "gdal"),
    ("pil", "pillow"),
    ("pkg-resources", "setuptools"),
    ("pptx", "python-pptx"),
    ("psycopg2", "psycopg2-binary"),
    ("pylab", "matplotlib"),
    ("rest-framework", "djangorestframework"),
    ("ruamel", "ruamel-yaml"),
    ("serial", "pyserial"),
    ("skimage", "scikit-image"),
    ("sklearn", "scikit-learn"),
    ("slugify", "python-slugify"),
    ("socks", "pysocks"),
    ("talib", "ta-lib"),
    ("telegram", "python-telegram-bot"),
    ("tlz", "toolz"),
    ("umap", "umap-learn"),
    ("usb", "pyusb"),
    ("yaml", "pyyaml"),
    ("zmq", "pyzmq"),
];

/// Public modules of Python 3.13, in normal form: <https://docs.python.org/3.13/py-modindex.html>.
const STANDARD_LIBRARY: &str = "abc argparse array ast asyncio atexit base64 bdb binascii bisect builtins bz2 cprofile \
    calendar cmath cmd code codecs codeop collections colorsys compileall concurrent configparser contextlib contextvars \
    copy copyreg csv ctypes curses dataclasses datetime dbm decimal difflib dis doctest email encodings ensurepip enum errno \
    faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc genericpath getopt getpass gettext glob \
    graphlib grp gzip hashlib heapq hmac html http imaplib importlib inspect io ipaddress itertools json keyword linecache \
    locale logging lzma mailbox marshal math mimetypes mmap modulefinder multiprocessing netrc ntpath numbers opcode operator \
    optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posix posixpath pprint profile pstats pty pwd \
    py-compile pyclbr pydoc pyexpat queue quopri random re readline reprlib resource rlcompleter runpy sched secrets select \
    selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct \
    subprocess symtable sys sysconfig syslog tabnanny tarfile tempfile termios textwrap threading time timeit tkinter token \
    tokenize tomllib trace traceback tracemalloc tty turtle types typing unicodedata unittest urllib uuid venv warnings wave \
    weakref webbrowser wsgiref xml xmlrpc zipapp zipfile zipimport zlib zoneinfo";

/// Well-known names, one a line: those that slips of the pen and squatters aim at.
const POPULAR: &str = include_str!("popular.txt");
/// One slip away from a well-known name and right all the same: each stands among the 15,000 most downloaded packages, and was
/// looked at. Those that only live off a slip (`reqeusts`, `pyyml`, `panda`) are left out.
const NEIGHBOURS: &str = "aiofile antropy aresponses astrapy authlib bpython cattrs cchardet crick cssselect2 ctransformers cwcwidth dataset \
    fastai gitdb2 grequests gsutil hjson httpr ijson ipytest isolate jaxlie jiwer jsonpath jsons markdown2 murmurhash2 \
    ncclient nest-asyncio2 ngboost nvidia-cublas-cu11 parse parsl parsy pathy pbspark persistent pkginfo2 psycopg-binary \
    pyaml pydoe pylink pymem pymssql pymupdfb pyshark retworkx scapy scipp scrypt simpy smmap2 spython sqlglotc \
    tensorboardx tombi tooz torchx unicorn uri-template usort vyper wand willow";
/// Shorter names have too many neighbours.
const MIN_LENGTH: usize = 5;

/// The package to install for a name to import; none when it is the same.
pub(crate) fn distribution_of(name: &str) -> Option<&'static str> {
    DISTRIBUTIONS.iter().find(|(import, _)| *import == name).map(|(_, distribution)| *distribution)
}

/// Whether Python itself has it.
pub(crate) fn is_standard_library(name: &str) -> bool {
    STANDARD_LIBRARY.split_whitespace().any(|module| module == name)
}

fn popular() -> impl Iterator<Item = &'static str> {
    POPULAR.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether so many use it that it is what its name says.
fn is_well_known(name: &str) -> bool {
    popular().chain(NEIGHBOURS.split_whitespace()).any(|known| known == name)
}

/// Of what a resolution brings along, what looks like a slip and has nobody to vouch for it. A well-known package and one of
/// the stack know what they need, and so does what they need. `asked`: what somebody has named, which is judged by itself.
pub(crate) fn doubtful(pins: &[Pin], asked: impl Fn(&str) -> bool, in_stack: impl Fn(&str) -> bool) -> Vec<String> {
    let vouches = |name: &str| is_well_known(name) || in_stack(name);
    let named = pins.iter().flat_map(|pin| pin.needed_by.iter().chain([&pin.name])).map(String::as_str);
    let mut trusted = named.filter(|name| vouches(name)).collect::<BTreeSet<_>>();
    loop {
        let vouched_for = |pin: &&Pin| pin.needed_by.iter().any(|name| trusted.contains(name.as_str()));
        let more = pins.iter().filter(vouched_for).map(|pin| pin.name.as_str()).collect::<BTreeSet<_>>();
        let before = trusted.len();
        trusted.extend(more);
        if trusted.len() == before {
            break;
        }
    }
    let left = pins.iter().map(|pin| pin.name.as_str()).filter(|name| !trusted.contains(name) && !asked(name));
    left.filter(|name| meant(name).is_some()).map(str::to_owned).collect()
}

/// The well-known name that is one slip away, unless this one is well known itself.
pub(crate) fn meant(name: &str) -> Option<&'static str> {
    if is_well_known(name) {
        return None;
    }
    let looks = look(name);
    popular()
        .filter(|known| known.len() >= MIN_LENGTH)
        .find(|known| look(known) == looks || known.len().abs_diff(name.len()) <= 1 && strsim::osa_distance(known, name) == 1)
}

/// What a name looks like at a glance.
fn look(name: &str) -> String {
    name.replace("rn", "m").replace("vv", "w").replace('-', "").replace(['1', 'i'], "l").replace('0', "o").replace('5', "s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_away_from_a_well_known_name_is_seen() {
        for (slip, name) in [
            ("reqeusts", "requests"),
            ("requets", "requests"),
            ("numpyy", "numpy"),
            ("nurnpy", "numpy"),
            ("c0lorama", "colorama"),
            ("python-dateutils", "python-dateutil"),
            ("scikitlearn", "scikit-learn"),
        ] {
            assert_eq!(meant(slip), Some(name), "{slip}");
        }
    }

    #[test]
    fn well_known_and_unrelated_names_are_left_alone() {
        for name in [
            "requests",
            "tomli",
            "toml",
            "ujson",
            "orjson",
            "humanize",
            "my-company-tools",
            "boto3",
            "botocore",
            "httpx",
            "attrs",
            "cattrs",
            "authlib",
            "uri-template",
        ] {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    #[test]
    fn a_slip_that_comes_along_is_doubted_unless_who_needs_it_is_well_known() {
        let pin = |name: &str, needed_by: &[&str]| Pin {
            name: name.to_owned(),
            needed_by: needed_by.iter().map(|name| (*name).to_owned()).collect(),
            ..Pin::default()
        };
        let doubted = |pins: &[Pin]| doubtful(pins, |name| name == "numpyy", |name| name == "of-the-stack");
        let unknown = [pin("little-known", &[]), pin("reqeusts", &["little-known"]), pin("humanize", &["little-known"])];
        assert_eq!(doubted(&unknown), ["reqeusts"]);
        // Also further down, and not where somebody has asked for it by name.
        assert_eq!(doubted(&[pin("a", &[]), pin("b", &["a"]), pin("numpyy", &["b"]), pin("pandsa", &["b"])]), ["pandsa"]);
        // celery's own dependency, and that one's.
        assert!(doubted(&[pin("celery", &[]), pin("helper", &["celery"]), pin("kombo", &["helper", "little-known"])]).is_empty());
        assert!(doubted(&[pin("pandsa", &["of-the-stack"])]).is_empty());
    }

    /// Where this fails after an update of Python, the list has to follow.
    #[test]
    fn the_standard_library_is_that_of_the_tree() {
        // Of other systems, Python's own tests and jokes, and what nobody imports by itself.
        const LEFT_OUT: &str = "antigravity idlelib msvcrt nt nturl2path pydoc-data sre-compile sre-constants sre-parse this \
            turtledemo winreg winsound";
        let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/tree/python/bin/python3");
        let code = "import sys; print(*sorted(n.lower().replace('_', '-') for n in sys.stdlib_module_names if n[0] != '_'))";
        let output = std::process::Command::new(python).args(["-I", "-c", code]).output().expect("the tree is built");
        let text = String::from_utf8(output.stdout).expect("text");
        let theirs = text.split_whitespace().collect::<BTreeSet<_>>();
        let ours = STANDARD_LIBRARY.split_whitespace().chain(LEFT_OUT.split_whitespace()).collect::<BTreeSet<_>>();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_lists_are_in_normal_form() {
        let normal = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(DISTRIBUTIONS.iter().all(|(import, distribution)| normal(import) && normal(distribution)));
        assert!(popular().chain(NEIGHBOURS.split_whitespace()).all(normal));
        assert!(NEIGHBOURS.split_whitespace().is_sorted());
    }
}
