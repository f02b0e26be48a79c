//! From the words of a command line and the variables of an environment to a [`Config`].

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, CommandFactory, Error, FromArgMatches};

use super::{Cli, Command, Config};

/// What the command line and the environment of a process say.
#[derive(Debug)]
pub struct Invocation {
    /// What to do instead of serving.
    pub command: Option<Command>,
    /// The options of the server.
    pub config: Config,
    /// What is odd about the environment without being an error, for the log.
    pub warnings: Vec<String>,
    settings: Vec<Setting>,
}

/// An option that a variable sets.
#[derive(Debug)]
struct Setting {
    /// As the command line has it: `--port`.
    option: String,
    /// `WSCAST_PORT`.
    variable: String,
    /// The same as a command line says it.
    arguments: Vec<String>,
}

impl Invocation {
    /// Reads a command line, and what it leaves out from an environment.
    ///
    /// # Errors
    /// One line that names the option or the variable and the remedy; or the text that `--help` or
    /// `--version` asked for ([`Error::use_stderr`] is false then).
    pub fn read(
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut words = Vec::new();
        for argument in arguments {
            words.push(argument.into().into_string().map_err(|argument| {
                let shown = argument.to_string_lossy();
                invalid(format!(
                    "the argument '{shown}' is no text: write it in UTF-8"
                ))
            })?);
        }
        let command = Cli::command_without_environment();
        let mut invocation = match command.clone().try_get_matches_from(&words) {
            Ok(matches) => {
                let given = |arg: &Arg| {
                    matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
                };
                read_environment(&command, variables, given)?
            }
            // The help names the variables.
            Err(asked) if !asked.use_stderr() => {
                return Err(Cli::command()
                    .try_get_matches_from(&words)
                    .err()
                    .unwrap_or(asked));
            }
            Err(error) => return Err(error),
        };
        let of_variables = invocation.settings.iter().flat_map(|it| &it.arguments);
        let at = words.len().min(1);
        let all: Vec<&String> = words[..at]
            .iter()
            .chain(of_variables)
            .chain(&words[at..])
            .collect();
        let cli = Cli::from_arg_matches(&command.try_get_matches_from(all)?)?;
        (invocation.command, invocation.config) = (cli.command, cli.serve);
        match invocation.config.validate() {
            Ok(()) => Ok(invocation),
            Err(message) => Err(invalid(invocation.name_variables(&message))),
        }
    }

    /// `text` with the names of variables in the place of the options that they set.
    pub fn name_variables(&self, text: &str) -> String {
        let is_part_of_name = |it: char| it.is_ascii_alphanumeric() || it == '-';
        let mut named = String::new();
        for word in text.split_inclusive(|it| !is_part_of_name(it)) {
            let option = word.trim_end_matches(|it| !is_part_of_name(it));
            match self.settings.iter().find(|it| it.option == option) {
                Some(setting) => {
                    named.push_str(&setting.variable);
                    named.push_str(&word[option.len()..]);
                }
                None => named.push_str(word),
            }
        }
        named
    }
}

/// What the environment sets where the command line has not `given` it already; with the default
/// configuration in the place of the one that is still to be read.
fn read_environment(
    command: &clap::Command,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    given: impl Fn(&Arg) -> bool,
) -> Result<Invocation, Error> {
    let mut invocation = Invocation {
        command: None,
        config: Config::default(),
        warnings: Vec::new(),
        settings: Vec::new(),
    };
    // Which names which variable is lost where no variable is to be read.
    let named = Cli::command();
    for (variable, value) in variables {
        let Ok(variable) = variable.into_string() else {
            continue;
        };
        if !variable.starts_with("WSCAST_") {
            continue;
        }
        let Some(arg) = named.get_arguments().find(|it| is_set_by(it, &variable)) else {
            if !is_of_others(&variable) {
                invocation.warnings.push(unknown(&variable, &named));
            }
            continue;
        };
        if given(arg) {
            continue;
        }
        let Ok(value) = value.into_string() else {
            return Err(invalid(format!("{variable} is no text: write it in UTF-8")));
        };
        match read_variable(arg, &variable, &value) {
            Value::Unset => {}
            Value::Injected => invocation.warnings.push(format!(
                "{variable} is passed over: {value} is what an orchestrator sets for a service of \
                 this name; rename the service to set the option"
            )),
            Value::Set(setting) => {
                let words = ["wscast".to_string()].into_iter();
                let alone = command
                    .clone()
                    .try_get_matches_from(words.chain(setting.arguments.iter().cloned()));
                if let Err(mut error) = alone
                    && matches!(
                        error.kind(),
                        ErrorKind::InvalidValue | ErrorKind::ValueValidation
                    )
                {
                    error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
                    return Err(error);
                }
                invocation.settings.push(setting);
            }
        }
    }
    Ok(invocation)
}

/// What a variable is found to say.
enum Value {
    Unset,
    Injected,
    Set(Setting),
}

fn read_variable(arg: &Arg, variable: &str, value: &str) -> Value {
    // Files that are mounted as variables end like this.
    let value = value.strip_suffix('\n').unwrap_or(value);
    let value = value.strip_suffix('\r').unwrap_or(value);
    // An option that takes whatever is written there, nothing included.
    let is_text = arg.is_allow_hyphen_values_set();
    if value.is_empty() && !is_text {
        return Value::Unset;
    }
    if is_of_others(variable) && ["tcp://", "udp://"].iter().any(|it| value.starts_with(it)) {
        return Value::Injected;
    }
    let delimiter = arg.get_value_delimiter();
    let values: Vec<&str> = match arg.get_action() {
        ArgAction::Append => value
            .split(|it: char| it.is_whitespace() || Some(it) == delimiter)
            .filter(|it| !it.is_empty())
            .collect(),
        _ => vec![value],
    };
    let option = format!("--{}", arg.get_long().unwrap_or_default());
    Value::Set(Setting {
        arguments: values.iter().map(|it| format!("{option}={it}")).collect(),
        option,
        variable: variable.to_string(),
    })
}

fn is_set_by(arg: &Arg, variable: &str) -> bool {
    arg.get_env().is_some_and(|it| it == variable)
}

/// Whether a variable may be there for another reason than to set an option: Kubernetes and
/// container links describe services of this name by such ones, and tests have their own.
fn is_of_others(variable: &str) -> bool {
    let rest = variable.strip_prefix("WSCAST").unwrap_or(variable);
    let has_part = |part: &str| {
        let mut ends = rest
            .match_indices(part)
            .map(|(at, _)| &rest[at + part.len()..]);
        ends.any(|end| end.is_empty() || end.starts_with('_'))
    };
    ["_PORT", "_SERVICE_HOST", "_SERVICE_PORT"]
        .iter()
        .any(|it| has_part(it))
        || rest.ends_with("_NAME")
        || rest.contains("_ENV_")
        || rest.starts_with("_TEST_")
}

/// A line that helps to find a misspelt variable, which without it would be without any effect.
fn unknown(variable: &str, command: &clap::Command) -> String {
    let names = command.get_arguments().filter_map(Arg::get_env);
    let nearest = names
        .map(|it| it.to_string_lossy())
        .min_by_key(|it| strsim::damerau_levenshtein(it, variable))
        .unwrap_or_default();
    format!("{variable} sets no option: did you mean {nearest}? wscast --help names all of them")
}

fn invalid(message: String) -> Error {
    Cli::command().error(ErrorKind::ValueValidation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str, variables: &[(&str, &str)]) -> Result<Invocation, Error> {
        let words = std::iter::once("wscast").chain(line.split_whitespace());
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Invocation::read(words, variables)
    }

    #[test]
    fn the_command_line_comes_before_the_environment() {
        let variables = [
            ("WSCAST_PORT", "80"),
            ("WSCAST_HOST", "[::1]"),
            ("WSCAST_LOG_MESSAGES", "on"),
        ];
        let config = read("--port 81", &variables).unwrap().config;
        assert_eq!(
            (
                config.listening.port,
                config.listening.host.as_str(),
                config.logs.messages
            ),
            (81, "::1", true)
        );
        // Even where that is wrong.
        let config = read("--port 81", &[("WSCAST_PORT", "soon")])
            .unwrap()
            .config;
        assert_eq!(config.listening.port, 81);
    }

    #[test]
    fn an_empty_variable_is_unset_except_for_a_text() {
        let names = Cli::command();
        let names: Vec<&str> = names
            .get_arguments()
            .filter_map(|it| {
                it.get_env()
                    .map(|it| it.to_str().unwrap().to_owned().leak() as &str)
            })
            .filter(|it| !["WSCAST_WELCOME", "WSCAST_PREFIX"].contains(it))
            .collect();
        assert!(names.len() >= 20);
        for value in ["", "\n", "\r\n"] {
            for name in &names {
                let config = read("", &[(name, value)]).unwrap().config;
                assert_eq!(config, Config::default(), "{name}");
            }
            let texts = [("WSCAST_WELCOME", value), ("WSCAST_PREFIX", value)];
            let config = read("", &texts).unwrap().config;
            assert_eq!(
                (config.service.welcome(), config.service.prefix()),
                ("", "")
            );
        }
    }

    #[test]
    fn one_line_break_at_the_end_of_a_value_is_cut_off() {
        let variables = [
            ("WSCAST_PORT", "80\n"),
            ("WSCAST_WELCOME", "hi\n\r\n"),
            ("WSCAST_PREFIX", "- "),
        ];
        let config = read("", &variables).unwrap().config;
        assert_eq!(
            (
                config.listening.port,
                config.service.welcome(),
                config.service.prefix()
            ),
            (80, "hi\n", "- ")
        );
    }

    #[test]
    fn spaces_or_commas_separate_the_values_of_a_variable() {
        let variables = [(
            "WSCAST_ALLOW_ORIGIN",
            " https://a.example  null, https://b.example,*\n",
        )];
        let config = read("", &variables).unwrap().config;
        assert_eq!(config.access.allow_origin.len(), 4);
        let config = read("--allow-origin null", &variables).unwrap().config;
        assert_eq!(config.access.allow_origin.len(), 1);
    }

    #[test]
    fn a_variable_injected_by_an_orchestrator_is_ignored_with_a_warning() {
        let injected = read("", &[("WSCAST_PORT", "tcp://10.0.0.1:8765")]).unwrap();
        assert_eq!(injected.config, Config::default());
        assert_eq!(injected.warnings.len(), 1);
        assert!(injected.warnings[0].contains("WSCAST_PORT is passed over"));
        // A value of another option may look the same.
        let text = read("", &[("WSCAST_WELCOME", "tcp://here")]).unwrap();
        assert_eq!(text.config.service.welcome(), "tcp://here");
        assert!(read("", &[("WSCAST_HOST", "tcp://10.0.0.1:8765")]).is_err());
    }

    #[test]
    fn an_unknown_variable_is_named_with_the_nearest_one() {
        let unknown = read(
            "",
            &[("WSCAST_MAX_CONECTIONS", "5"), ("WSCAST_LOGFORMAT", "json")],
        )
        .unwrap();
        assert_eq!(unknown.config, Config::default());
        let [one, other] = &unknown.warnings[..] else {
            panic!("{:?}", unknown.warnings)
        };
        assert!(
            one.contains("WSCAST_MAX_CONECTIONS") && one.contains("WSCAST_MAX_CONNECTIONS?"),
            "{one}"
        );
        assert!(other.contains("did you mean WSCAST_LOG_FORMAT?"), "{other}");
        for name in [
            "WSCAST_PORT_8765_TCP",
            "WSCAST_PORT_8765_TCP_ADDR",
            "WSCAST_SERVICE_HOST",
            "WSCAST_SERVICE_PORT_HTTP",
            "WSCAST_REDIS_MASTER_SERVICE_PORT",
            "WSCAST_ADMIN_PORT",
            "WSCAST_NAME",
            "WSCAST_ENV_PATH",
            "WSCAST_TEST_ALL",
            "OTHER",
        ] {
            assert_eq!(
                read("", &[(name, "x")]).unwrap().warnings,
                [""; 0],
                "{name}"
            );
        }
    }

    #[test]
    fn an_error_names_the_variable_that_caused_it() {
        for (variable, value) in [
            ("WSCAST_PORT", "http"),
            ("WSCAST_PORT", "70000"),
            ("WSCAST_MODE", "chat"),
            ("WSCAST_MAX_QUEUE", "-1"),
            ("WSCAST_MAX_QUEUE", "0"),
            ("WSCAST_PING_TIMEOUT", "0"),
            ("WSCAST_MAX_MESSAGE_SIZE", "1TiB"),
            ("WSCAST_ALLOW_ORIGIN", "null nothing"),
            ("WSCAST_LOG_MESSAGES", "1"),
        ] {
            let error = read("", &[(variable, value)]).unwrap_err().to_string();
            let option = variable
                .to_lowercase()
                .replace('_', "-")
                .replace("wscast", "-");
            assert!(
                error.contains(variable) && !error.contains(&option),
                "{error}"
            );
        }
        let error = read("--port http", &[("WSCAST_PORT", "80")]).unwrap_err();
        assert!(error.to_string().contains("'--port <PORT>'"), "{error}");
    }

    #[test]
    fn options_that_variables_set_are_found_by_their_whole_name() {
        let invocation = read("", &[("WSCAST_MAX_QUEUE", "5")]).unwrap();
        let text = "--max-queue-bytes, --max-queue: see --max-queue";
        let named = "--max-queue-bytes, WSCAST_MAX_QUEUE: see WSCAST_MAX_QUEUE";
        assert_eq!(invocation.name_variables(text), named);
    }

    #[test]
    fn a_text_may_begin_with_a_hyphen() {
        let words = ["wscast", "--prefix", "- ", "--welcome", "-x"];
        let config = Invocation::read(words, []).unwrap().config;
        assert_eq!(
            (config.service.prefix(), config.service.welcome()),
            ("- ", "-x")
        );
    }

    #[test]
    fn a_switch_without_a_value_is_on() {
        for (line, on) in [
            ("", false),
            ("--log-messages", true),
            ("--log-messages on", true),
            ("--log-messages=off", false),
            ("--log-messages --port 1", true),
        ] {
            assert_eq!(read(line, &[]).unwrap().config.logs.messages, on, "{line}");
        }
    }

    #[test]
    fn errors_do_not_mention_rust_types() {
        let command = Cli::command();
        let values = [
            "",
            "x",
            "-1",
            "1.5.5",
            "99999999999999999999999",
            "\u{1f600}",
        ];
        for arg in command.get_arguments().filter(|it| it.get_env().is_some()) {
            let option = format!("--{}", arg.get_long().unwrap());
            for value in values {
                let word = format!("{option}={value}");
                let Err(error) = Invocation::read(["wscast", &word], []) else {
                    continue;
                };
                let error = error.to_string();
                assert!(error.contains(&option), "{error}");
                let helps = [
                    "write ",
                    "possible values",
                    "at most",
                    "at least",
                    "longer than",
                    "value is required",
                ];
                assert!(helps.iter().any(|it| error.contains(it)), "{error}");
                assert!(
                    !error.contains("target type") && !error.contains("digit"),
                    "{error}"
                );
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn input_that_is_not_utf_8_is_reported() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(b"\xff".to_vec());
        let error = Invocation::read([OsString::from("wscast"), broken()], []).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
        let error =
            Invocation::read(["wscast"], [("WSCAST_WELCOME".into(), broken())]).unwrap_err();
        assert!(error.to_string().contains("WSCAST_WELCOME"), "{error}");
    }
}
