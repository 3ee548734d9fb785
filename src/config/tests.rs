use std::collections::{BTreeSet, HashMap};

use super::*;

const EXAMPLE: &str = include_str!("../../walcast.example.toml");

fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Error> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    let flags: Vec<Override> = flags
        .iter()
        .map(|(key, value)| Override { key: (*key).into(), value: (*value).into(), flag: format!("--{key}") })
        .collect();
    let mut problems = Vec::new();
    let mut layers = Layers::defaults();
    layers.toml(file, "walcast.toml", &mut problems);
    layers.env(|name| env.get(name).map(|text| (*text).to_owned()));
    layers.flags(&flags, &mut problems);
    read::config(&layers, problems)
}

fn problems(result: Result<Config, Error>) -> Vec<String> {
    result.expect_err("must be refused").problems.iter().map(Problem::to_string).collect()
}

const DSN: (&str, &str) = ("source.dsn", "postgres://app@db/shop");

#[test]
fn later_layers_replace_single_keys() {
    let file = "[source]\ndsn = 'postgres://file@db/shop'\nslot = 'from_file'\npublication = 'from_file'\n[journal]\nretain_age = '2d'";
    let env = [("WALCAST_PUBLICATION", "from_env"), ("WALCAST_SLOT", ""), ("WALCAST_LISTEN", "127.0.0.1:1")];
    let config = load(file, &env, &[("grpc.listen", "127.0.0.1:2")]).expect("valid");
    assert_eq!(config.source.slot, "from_file");
    assert_eq!(config.source.publication, "from_env");
    assert_eq!(config.grpc.listen, SocketAddr::from(([127, 0, 0, 1], 2)));
    assert_eq!(config.journal.retain_age, Duration::from_secs(2 * 86_400));
    assert_eq!(config.journal.retain_bytes, 10 << 30);
}

#[test]
fn libpqs_variables_are_enough_to_know_the_server() {
    let config = load("", &[("PGHOST", "db")], &[]).expect("valid");
    assert_eq!(config.source.dsn.expose(), "");
    assert!(problems(load("", &[("PGPASSWORD", "x"), ("PGHOST", "")], &[])).iter().any(|line| line.contains("PGHOST")));
}

#[test]
fn every_problem_is_told_at_once_with_its_key_and_origin() {
    let file = "[source]\nslott = 'x'\n[grpcc]\nlisten = ''\n[journal]\nretain_bytes = '10G'\nring_bytes = -1";
    let told = problems(load(file, &[("WALCAST_SLOT", "Bad-Slot")], &[("log.format", "xml")]));
    let expected = [
        ("source.slott", "[source] has dsn, dsn_file, slot"),
        ("grpcc", "there are source, journal, grpc"),
        ("source.dsn", "required"),
        ("source.slot", "(from WALCAST_SLOT)"),
        ("journal.retain_bytes", "\"10G\" is not a size"),
        ("journal.ring_bytes", "(from walcast.toml)"),
        ("log.format", "(from --log.format)"),
    ];
    for (key, part) in expected {
        assert!(
            told.iter().any(|line| line.starts_with(&format!("{key}: ")) && line.contains(part)),
            "{key} / {part}: {told:#?}"
        );
    }
}

#[test]
fn values_from_the_environment_have_the_types_of_the_file() {
    let env = [
        ("WALCAST_DSN", "host=db user=app"),
        ("WALCAST_CREATE_PUBLICATION", "true"),
        ("WALCAST_SCHEMAS", "public, sales"),
        ("WALCAST_LIMITS_STREAMS", "7"),
        ("WALCAST_RETAIN_BYTES", "1GiB"),
        ("WALCAST_HTTP", "off"),
    ];
    let config = load("", &env, &[]).expect("valid");
    assert!(config.source.create_publication);
    assert_eq!(config.source.schemas, ["public", "sales"]);
    assert_eq!(config.limits.streams, 7);
    assert_eq!(config.journal.retain_bytes, 1 << 30);
    assert_eq!(config.http.listen, None);
}

#[test]
fn other_machines_are_let_in_on_purpose_only() {
    let told = problems(load("", &[], &[DSN, ("grpc.listen", "0.0.0.0:50051")]));
    assert!(told[0].contains("grpc.insecure = true"), "{told:?}");
    for allowed in [("grpc.insecure", "true"), ("grpc.tokens_file", "/etc/walcast/tokens")] {
        load("", &[], &[DSN, ("grpc.listen", "0.0.0.0:50051"), allowed]).expect("allowed");
    }
}

#[test]
fn misspelt_variables_are_found() {
    let names = ["WALCAST_SLOTT", "WALCAST_SLOT", "WALCAST_TEST_X", "WALCAST_PORT_50051_TCP", "PATH", "WALCAST_HUB"];
    let unknown = unknown_variables(names.into_iter().map(str::to_owned), &["WALCAST_HUB"]);
    assert_eq!(unknown, ["WALCAST_SLOTT"]);
}

#[test]
fn tls_needs_both_halves() {
    let told = problems(load("", &[], &[DSN, ("grpc.tls_cert", "c.pem")]));
    assert!(told[0].starts_with("grpc.tls_key: required"), "{told:?}");
    let told = problems(load("", &[], &[DSN, ("grpc.tls_client_ca", "ca.pem")]));
    assert!(told[0].contains("needs grpc.tls_cert"), "{told:?}");
    let config = load("", &[], &[DSN, ("grpc.tls_cert", "c.pem"), ("grpc.tls_key", "k.pem")]).expect("valid");
    assert_eq!(config.grpc.tls, Some(Tls { cert: "c.pem".into(), key: "k.pem".into(), client_ca: None }));
}

#[test]
fn the_connection_string_may_come_from_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("dsn");
    std::fs::write(&path, "postgres://app:hunter2@db/shop\n").expect("written");
    let path = path.display().to_string();
    let config = load("", &[("WALCAST_DSN_FILE", &path)], &[]).expect("valid");
    assert_eq!(config.source.dsn.expose(), "postgres://app:hunter2@db/shop");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    let told = problems(load("", &[("WALCAST_DSN_FILE", &path), ("WALCAST_DSN", DSN.1)], &[]));
    assert!(told[0].contains("give one of them"), "{told:?}");
    // Of the pair, too, a later layer replaces what an earlier one says.
    let config = load("", &[("WALCAST_DSN_FILE", &path)], &[DSN]).expect("valid");
    assert_eq!(config.source.dsn.expose(), DSN.1);
    let config = load("", &[("WALCAST_DSN", DSN.1)], &[("source.dsn_file", &path)]).expect("valid");
    assert_eq!(config.source.dsn.expose(), "postgres://app:hunter2@db/shop");
}

#[test]
fn the_example_holds_every_setting_at_its_default() {
    let table: toml::Table = toml::from_str(EXAMPLE).expect("the example is TOML");
    let mut named = BTreeSet::new();
    for (section, keys) in &table {
        for (key, value) in keys.as_table().expect("sections only") {
            let key = format!("{section}.{key}");
            let defaults = Layers::defaults();
            let (default, _) = defaults.get(&key).unwrap_or_else(|| panic!("{key} is no setting"));
            assert_eq!(value, default, "{key}");
            named.insert(key);
        }
    }
    let all: BTreeSet<String> = SETTINGS.iter().map(|setting| setting.key.to_owned()).collect();
    assert_eq!(named, all);
    for setting in SETTINGS {
        assert!(EXAMPLE.contains(&format!("[{}]", setting.env)), "{} names {}", setting.key, setting.env);
    }
}

#[test]
fn defaults_are_valid_but_for_the_connection() {
    load(EXAMPLE, &[], &[DSN]).expect("valid");
    assert_eq!(Layers::defaults().get("grpc.insecure").map(|(_, origin)| origin.clone()), Some(Origin::Default));
}

#[test]
fn an_origin_that_no_browser_would_send_is_refused() {
    let valid = "https://app.example.com, http://localhost:5173,http://[::1]:8000";
    let config = load("", &[("WALCAST_WEB_ORIGINS", valid)], &[DSN]).expect("valid");
    assert_eq!(config.grpc.web_origins.len(), 3);
    assert!(load("", &[], &[DSN]).expect("valid").grpc.web_origins.is_empty(), "off unless asked for");
    for (wrong, why) in [
        ("app.example.com", "scheme://"),
        ("https://app.example.com/", "no slash"),
        ("https://App.example.com", "lower case"),
        ("https://app.example.com:443", "own port"),
        ("https://", "nothing may follow"),
    ] {
        let told = problems(load("", &[], &[DSN, ("grpc.web_origins", wrong)]));
        assert!(told[0].starts_with("grpc.web_origins: ") && told[0].contains(why), "{wrong}: {told:?}");
    }
}

#[test]
fn pages_of_any_origin_need_a_token() {
    let told = problems(load("", &[], &[DSN, ("grpc.web_origins", "*")]));
    assert!(told[0].contains("without tokens"), "{told:?}");
    for allowed in [("grpc.insecure", "true"), ("grpc.tokens_file", "/etc/walcast/tokens")] {
        load("", &[], &[DSN, ("grpc.web_origins", "*"), allowed]).expect("allowed");
    }
}
