//! A real Chromium with the page in it.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::key::Key;
use fantoccini::wd::{WebDriverCompatibleCommand, WindowHandle};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use url::Url;

use crate::harness::PATIENCE;

/// A name that leads browsers here, and is not one of this machine.
pub(crate) const PUBLIC_NAME: &str = "wscast.test";

/// A browser is heavy: one runs at a time.
static RUNNING: Mutex<()> = Mutex::const_new(());

/// The path of Chromium, as a shell finds it.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join("chromium"));
    places.find(|it| it.exists())
}

/// A browser with an empty profile; it ends when dropped.
pub(crate) struct Browser {
    client: Client,
    _driver: Driver,
    profile: TempDir,
    _guard: MutexGuard<'static, ()>,
}

impl Browser {
    /// A browser; none, with a line on stderr, where Chromium is not installed, which
    /// `WSCAST_TEST_ALL` does not allow.
    pub(crate) async fn start() -> Option<Self> {
        let guard = RUNNING.lock().await;
        let mut command = Command::new("chromedriver");
        command
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // One process group with Chromium and its children, which is killed as a whole.
            .process_group(0);
        let (Ok(mut driver), Some(chromium)) = (command.spawn(), chromium()) else {
            assert!(
                std::env::var_os("WSCAST_TEST_ALL").is_none(),
                "chromium and chromedriver are not installed: tests/run does that"
            );
            let line = b"left out, for want of chromium and chromedriver: a test of the page\n";
            // Directly, as the harness hides the output of tests that pass.
            std::io::stderr().write_all(line).unwrap();
            return None;
        };
        let stdout = driver.stdout.take().unwrap();
        let driver = Driver(driver);
        let mut lines = BufReader::new(stdout).lines();
        let port = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("a port");
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    break port.trim_end_matches('.').to_owned();
                }
            }
        };
        let port = timeout(PATIENCE, port).await.expect("chromedriver starts");
        let profile = TempDir::new().unwrap();
        let mut flags: Vec<String> = "--headless --no-sandbox --disable-gpu --disable-quic \
            --disable-dev-shm-usage --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --window-size=1280,900"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        flags.push(format!("--host-resolver-rules=MAP {PUBLIC_NAME} 127.0.0.1"));
        flags.push(format!(
            "--user-data-dir={}",
            profile.path().join("profile").display()
        ));
        let capabilities = json!({"goog:chromeOptions": {
            "binary": chromium,
            "args": flags,
            "prefs": {"download.default_directory": profile.path()},
        }});
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().unwrap().clone())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        Some(Self {
            client,
            _driver: driver,
            profile,
            _guard: guard,
        })
    }

    /// The first window, showing `url`.
    pub(crate) async fn open(&self, url: &str) -> Page<'_> {
        let handle = self.client.window().await.unwrap();
        let page = Page {
            browser: self,
            handle,
        };
        page.goto(url).await;
        page
    }

    /// Another window, showing `url`.
    pub(crate) async fn open_another(&self, url: &str) -> Page<'_> {
        let handle = self.client.new_window(false).await.unwrap().handle;
        let page = Page {
            browser: self,
            handle,
        };
        page.goto(url).await;
        page
    }

    /// Files whose download is complete.
    pub(crate) fn downloads(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.profile.path()).unwrap();
        let paths = files.map(|it| it.unwrap().path());
        paths
            .filter(|it| it.extension().is_some_and(|it| it == "txt"))
            .collect()
    }
}

/// The process that drives Chromium.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let group = self.0.id().expect("it is not waited for before");
        let mut kill = std::process::Command::new("kill");
        kill.args(["-KILL", "--", &format!("-{group}")]);
        kill.status().expect("kill is there");
    }
}

/// The URL of the page as a file, with this query.
pub(crate) fn page_file(query: &str) -> String {
    format!(
        "file://{}/static/client.html{query}",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// One window.
pub(crate) struct Page<'a> {
    browser: &'a Browser,
    handle: WindowHandle,
}

impl Page<'_> {
    async fn client(&self) -> &Client {
        let client = &self.browser.client;
        client.switch_to_window(self.handle.clone()).await.unwrap();
        client
    }

    pub(crate) async fn goto(&self, url: &str) {
        self.client().await.goto(url).await.unwrap();
    }

    /// What `script` returns, run as the body of a function.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client().await.execute(script, vec![]).await.unwrap()
    }

    pub(crate) async fn text_of(&self, script: &str) -> String {
        let found = self.run(script).await;
        found
            .as_str()
            .unwrap_or_else(|| panic!("{found}"))
            .to_owned()
    }

    /// Waits until the expression `script` is true.
    pub(crate) async fn until(&self, script: &str) {
        let client = self.client().await;
        let wait = async {
            let script = format!("return Boolean({script})");
            while client.execute(&script, vec![]).await.unwrap() != Value::Bool(true) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            let page = self.run("return document.body.innerText").await;
            panic!("never true: {script}; the page says: {page}");
        }
    }

    /// Waits for the connection.
    pub(crate) async fn until_open(&self) {
        self.until("document.getElementById('state').textContent === 'Open'")
            .await;
    }

    /// Waits until the last row has this text.
    pub(crate) async fn until_last(&self, text: &str) {
        let text = Value::from(text);
        self.until(&format!(
            "[...document.querySelectorAll('#messages tr')].at(-1)?.cells[0].textContent === {text}"
        ))
        .await;
    }

    /// The messages in the table.
    pub(crate) async fn rows(&self) -> Vec<String> {
        let rows = "return [...document.querySelectorAll('#messages tr')].map((row) => row.cells[0].textContent)";
        serde_json::from_value(self.run(rows).await).unwrap()
    }

    /// Types on the keyboard, into the focused element.
    pub(crate) async fn keys(&self, keys: &[KeyAction]) {
        let mut actions = KeyActions::new("keyboard".into());
        for key in keys {
            actions = actions.then(key.clone());
        }
        self.client().await.perform_actions(actions).await.unwrap();
    }

    /// Types a message and presses Enter.
    pub(crate) async fn say(&self, text: &str) {
        self.click("text").await;
        self.keys(&[typed(text), press(Key::Enter)].concat()).await;
    }

    /// Clicks on the element with this id.
    pub(crate) async fn click(&self, id: &str) {
        let found = fantoccini::Locator::Id(id);
        let element = self.client().await.find(found).await.unwrap();
        element.click().await.unwrap();
    }

    /// Runs a command of the DevTools protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) {
        let command = DevTools(json!({"cmd": command, "params": parameters}));
        self.client().await.issue_cmd(command).await.unwrap();
    }

    /// Emulates this width and colour scheme, whatever the window's.
    pub(crate) async fn appear(&self, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", scheme).await;
    }

    /// Every id that Tab reaches from the top of the page.
    pub(crate) async fn tab_stops(&self) -> HashSet<String> {
        self.run("document.activeElement.blur(); window.getSelection().removeAllRanges()")
            .await;
        let mut stops = HashSet::new();
        for _ in 0..40 {
            self.keys(&press(Key::Tab)).await;
            stops.insert(
                self.text_of("return document.activeElement.id || document.activeElement.tagName")
                    .await,
            );
        }
        stops
    }

    /// Saves a screenshot to the folder `WSCAST_SCREENSHOTS`, if set.
    pub(crate) async fn picture(&self, name: &str) {
        if let Some(folder) = std::env::var_os("WSCAST_SCREENSHOTS") {
            let picture = self.client().await.screenshot().await.unwrap();
            std::fs::write(Path::new(&folder).join(name), picture).unwrap();
        }
    }
}

/// A key, pressed and released.
pub(crate) fn press(key: Key) -> Vec<KeyAction> {
    let value = key.into();
    vec![KeyAction::Down { value }, KeyAction::Up { value }]
}

/// A text, key by key.
pub(crate) fn typed(text: &str) -> Vec<KeyAction> {
    let keys = text.chars();
    keys.flat_map(|value| [KeyAction::Down { value }, KeyAction::Up { value }])
        .collect()
}

/// A command of the DevTools protocol, which Chromium's driver forwards.
#[derive(Debug)]
struct DevTools(Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!(
            "session/{}/goog/cdp/execute",
            session.unwrap_or_default()
        ))
    }

    fn method_and_body(&self, _: &Url) -> (hyper::Method, Option<String>) {
        (hyper::Method::POST, Some(self.0.to_string()))
    }
}
