//! Figures within the budget of an answer: each arrives and can be looked at, whatever the code has drawn.

use base64::Engine as _;
use serde_json::json;

use crate::client::{Home, Server};

/// Where clients that read events stop reading one.
const EVENT_BYTES: usize = 1 << 20;

const SCATTER: &str = "plt.figure(figsize=(10, 8), dpi=300)\n\
                       plt.scatter(np.random.rand(20000), np.random.rand(20000), c=np.random.rand(20000)); plt.show()\n";

/// Runs code that draws: the whole answer's length, its warnings, and type, size in pixels and bytes of each image.
async fn draw(server: &Server, code: &str) -> (usize, String, Vec<Picture>) {
    let code = format!("import numpy as np\nimport matplotlib.pyplot as plt\nfrom PIL import Image\n{code}");
    let answer = server.call("execute_python", json!({"code": code, "timeout": 60})).await;
    let content = answer["result"]["content"].as_array().unwrap();
    let result: serde_json::Value = serde_json::from_str(content[0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(result["success"], true, "{result:#}");
    let images = content.iter().filter(|block| block["type"] == "image").map(|image| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(image["data"].as_str().unwrap()).unwrap();
        Picture::of(image["mimeType"].as_str().unwrap(), &bytes)
    });
    let warnings = result["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap());
    (answer.to_string().len(), warnings.collect::<Vec<_>>().join("\n"), images.collect())
}

#[derive(Debug)]
struct Picture {
    jpeg: bool,
    /// A PNG that says which of some colours each pixel has.
    palette: bool,
    width: usize,
    height: usize,
    bytes: usize,
}

impl Picture {
    fn of(mime_type: &str, bytes: &[u8]) -> Self {
        let number = |at: usize, length: usize| bytes[at..at + length].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        if mime_type == "image/png" {
            assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.ends_with(b"IEND\xaeB`\x82"));
            let (width, height) = (number(16, 4), number(20, 4));
            return Self { jpeg: false, palette: bytes[25] == 3, width, height, bytes: bytes.len() };
        }
        assert!(mime_type == "image/jpeg" && bytes.starts_with(b"\xff\xd8") && bytes.ends_with(b"\xff\xd9"));
        let mut at = 2;
        // Segments up to the one that has the size.
        while !matches!(bytes[at + 1], 0xc0..=0xc2) {
            at += 2 + number(at + 2, 2);
        }
        Self { jpeg: true, palette: false, width: number(at + 7, 2), height: number(at + 5, 2), bytes: bytes.len() }
    }
}

/// What is drawn, how many images it is, how wide each is at least, and what must be told of them.
async fn arrive(cases: &[(&str, usize, usize, &str)]) {
    let server = Server::with(Home::Caller, &[("PRELOAD", "plot"), ("MAX_MEMORY_MB", "1024")]);
    for (code, images, width, told) in cases {
        let (length, warnings, pictures) = draw(&server, code).await;
        assert_eq!(pictures.len(), *images, "{code}: {warnings}");
        assert!(pictures.iter().all(|picture| picture.width >= *width), "{code}: {warnings} {pictures:?}");
        let bytes = pictures.iter().map(|picture| picture.bytes).sum::<usize>();
        assert!(length < EVENT_BYTES && bytes <= 512 << 10, "{code}: {length} {bytes}");
        assert!(warnings.contains(told), "{code}: {warnings}");
        assert!(told.is_empty() || warnings.contains("524,288 bytes (MAX_IMAGES_BYTES)"), "{code}: {warnings}");
    }
}

#[tokio::test]
async fn a_large_figure_arrives_in_an_answer_below_a_mebibyte() {
    let pairs = "import pandas as pd, seaborn as sns\nsns.pairplot(pd.DataFrame(np.random.randn(500, 6)))\n";
    arrive(&[
        (SCATTER, 1, 900, "image 1 "),
        ("plt.figure(dpi=200); plt.imshow(np.random.rand(600, 600)); plt.show()", 1, 900, "from 1280x960 to "),
        (pairs, 1, 1500, "to 256 colours"),
    ])
    .await;
}

#[tokio::test]
async fn an_image_of_many_megapixels_arrives_in_an_answer_below_a_mebibyte() {
    let noise = "Image.fromarray(np.random.randint(0, 255, (1000, 1000, 3), dtype='uint8'))";
    let transparent = "a = np.zeros((3000, 3000, 4), dtype='uint8'); a[:, :, :2] = np.random.randint(0, 255, (3000, 3000, 2))\n\
                       Image.fromarray(a)";
    arrive(&[
        ("plt.figure(figsize=(40, 30)); plt.imshow(np.random.rand(600, 800)); plt.show()", 1, 800, "from 4000x3000 to "),
        ("plt.imshow(np.random.randint(0, 255, (3000, 4000), dtype='uint8')); plt.show()", 1, 640, ""),
        (noise, 1, 500, "from 1000x1000 to "),
        (transparent, 1, 900, "image 1 "),
    ])
    .await;
}

/// The last ones were left out where each took what it liked.
#[tokio::test]
async fn many_figures_arrive_in_an_answer_below_a_mebibyte() {
    let open = "for i in range(20):\n    plt.figure(); plt.plot(np.random.rand(500))";
    let shown = format!("{open}; plt.show()");
    arrive(&[(open, 20, 640, "to 256 colours"), (&shown, 20, 640, "to 256 colours"), (&SCATTER.repeat(3), 3, 400, "image 3 ")])
        .await;
}

/// What fits is not touched, and what is drawn with few colours keeps its size and sharp edges.
#[tokio::test]
async fn a_small_figure_comes_as_it_is_and_a_plot_is_no_photograph() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "plot")]);
    let code = "import sys\nplt.plot([1, 2, 3]); plt.show()\nassert 'PIL.ImageStat' not in sys.modules";
    let (_, warnings, pictures) = draw(&server, code).await;
    assert_eq!(warnings, "");
    assert!(!pictures[0].jpeg && !pictures[0].palette && (pictures[0].width, pictures[0].height) == (640, 480), "{pictures:?}");
    let lines = "plt.figure(dpi=300)\nfor i in range(30): plt.plot(np.cumsum(np.random.randn(1000)))";
    let (_, warnings, pictures) = draw(&server, lines).await;
    assert!(warnings.contains("image 1 (") && warnings.contains("to 256 colours"), "{warnings}");
    assert!(pictures[0].palette && (pictures[0].width, pictures[0].height) == (1920, 1440), "{pictures:?}");
}

#[tokio::test]
async fn the_budget_is_a_setting_and_what_has_no_place_is_told() {
    let settings = [("PRELOAD", "plot"), ("MAX_IMAGES_BYTES", "30000")];
    let server = Server::with(Home::Caller, &settings);
    let (_, warnings, pictures) = draw(&server, &SCATTER.repeat(5)).await;
    assert!(!pictures.is_empty() && pictures.len() < 5, "{pictures:?}");
    assert!(pictures.iter().map(|picture| picture.bytes).sum::<usize>() <= 30_000, "{pictures:?}");
    assert!(warnings.contains("left out. All images of an answer may take 30,000 bytes (MAX_IMAGES_BYTES)"), "{warnings}");
    // Pillow may be another one, or none.
    let hidden = "import io, sys\ndata = io.BytesIO()\nImage.effect_noise((300, 300), 99).save(data, 'png')\n\
                  class Drawn:\n    def _repr_png_(self): return data.getvalue()\n\
                  for name in list(sys.modules):\n    if name.split('.')[0] == 'PIL': sys.modules[name] = None\nDrawn()";
    let (_, warnings, pictures) = draw(&server, hidden).await;
    assert!(pictures.is_empty() && warnings.contains("left out (ModuleNotFoundError when it was made smaller)"), "{warnings}");
    let restricted =
        json!({"code": format!("import numpy as np\nimport matplotlib.pyplot as plt\n{SCATTER}"), "policy": "restricted"});
    let settings = [&settings[..], &[("AUTHORIZED_IMPORTS", "numpy,matplotlib")]].concat();
    let answer = Server::with(Home::Caller, &settings).call("execute_python", restricted).await;
    assert_eq!(answer["result"]["content"][1]["type"], "image", "{answer}");
}

/// What no harness would send is left out by the supervisor, which looks into no image.
#[tokio::test]
async fn images_beyond_the_budget_that_code_sends_itself_are_left_out() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_IMAGES_BYTES", "10000")]);
    let code = "import os\ndef send(size):\n    frame = b'image/png\\0\\x89PNG\\r\\n\\x1a\\n' + bytes(size)\n    \
                data = memoryview(b'I' + len(frame).to_bytes(4, 'little') + frame)\n    while data: data = data[os.write(500, data):]\n\
                for size in (4000, 6000, 4000, 1900): send(size)";
    let answer = server.call("execute_python", json!({"code": code})).await;
    let content = answer["result"]["content"].as_array().unwrap();
    let sizes = content[1..].iter().map(|image| image["data"].as_str().unwrap().len() * 3 / 4).collect::<Vec<_>>();
    assert!(sizes.len() == 3 && sizes.iter().sum::<usize>() <= 10_000, "{sizes:?}");
    let text = content[0]["text"].as_str().unwrap();
    assert!(text.contains("1 images were left out") && text.contains("MAX_IMAGES_BYTES"), "{text}");
}

/// Each costs the server more than its bytes.
#[tokio::test]
async fn more_images_than_an_answer_may_have_are_left_out_whoever_sends_them() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core")]);
    let code = "import os\nframe = b'image/png\\0\\x89PNG\\r\\n\\x1a\\n'\n\
                for _ in range(40): os.write(500, b'I' + len(frame).to_bytes(4, 'little') + frame)";
    let answer = server.call("execute_python", json!({"code": code})).await;
    let content = answer["result"]["content"].as_array().unwrap();
    assert_eq!(content.len() - 1, 32);
    assert!(content[0]["text"].as_str().unwrap().contains("8 images were left out"), "{}", content[0]);
}

/// One that could not be drawn took all later ones with it, and no word was said of those.
#[tokio::test]
async fn a_figure_that_cant_be_drawn_costs_no_other() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "plot")]);
    let bad = r#"plt.figure(); plt.plot([1]); plt.title(r"$\frac{1$")"#;
    let (_, warnings, pictures) = draw(&server, &format!("{bad}\nfor i in range(2): plt.figure(); plt.plot([i])")).await;
    assert_eq!(pictures.len(), 2, "{warnings}");
    assert!(warnings.starts_with("figure 1 could not be made: ValueError"), "{warnings}");
}

/// A smooth field of 80 KB came with 65 colours, and so with rings that are not in the data.
#[tokio::test]
async fn a_figure_well_below_the_budget_is_as_drawn() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "plot")]);
    let smooth = "x, y = np.meshgrid(np.linspace(-3, 3, 800), np.linspace(-3, 3, 800))\n\
                  plt.figure(dpi=150); plt.imshow(np.exp(-x**2 - y**2) * np.cos(3 * x)); plt.colorbar()";
    let (_, warnings, pictures) = draw(&server, smooth).await;
    assert_eq!((pictures.len(), pictures[0].palette, &*warnings), (1, false, ""), "{pictures:?}");
    // Others might have come behind it; as many colours as there can be keep it smooth.
    let (_, _, shown) = draw(&server, &format!("{smooth}\nplt.show()")).await;
    assert!(shown[0].width == pictures[0].width && shown[0].bytes > 20_000, "{shown:?}");
}
