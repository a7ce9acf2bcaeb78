//! Whose failure a refused or failed connection is.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use rustls::{AlertDescription, CertificateError};

use crate::boot::ConfigError;

/// What an error while connecting means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerFault {
    /// Trying again can't help: a setting or a right must be fixed first.
    Misconfigured(ConfigError),
    /// The broker can't be reached or is starting or stopping, with its text: back off.
    Away(String),
}

/// What an error while connecting means.
#[must_use]
pub fn classify(err: &lapin::Error) -> BrokerFault {
    let amqp = match err.kind() {
        ErrorKind::ProtocolError(amqp) => amqp,
        ErrorKind::IOError(io) => match io.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(tls) => return classify_tls(tls),
            None => return BrokerFault::Away(err.to_string()),
        },
        _ => return BrokerFault::Away(err.to_string()),
    };
    let text = amqp.get_message().as_str();
    let fix = match amqp.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => "check user and password",
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if is_final(text) => {
            "check the vhost behind the host (\"/\" is written %2F) and the user's rights in it"
        }
        _ => return BrokerFault::Away(err.to_string()),
    };
    BrokerFault::Misconfigured(ConfigError::new(
        "AMQP_URL",
        amqp.get_message().to_string(),
        fix,
    ))
}

/// Of what RabbitMQ refuses with `NOT_ALLOWED`, only an unknown vhost and a missing right need a person.
/// Connection limits (of a vhost, a user, a node), a vhost that is down, an authorization service that
/// fails come with the same code, and pass.
fn is_final(text: &str) -> bool {
    let text = text.trim_end();
    let unknown = text.contains("vhost ") && text.ends_with(" not found");
    // With a reason behind it, it is the reason that counts.
    let no_right = text.contains(" refused for user '") && text.ends_with('\'');
    unknown || no_right
}

/// An expired certificate is renewed on the broker's side alone; the rest needs a setting.
fn classify_tls(err: &rustls::Error) -> BrokerFault {
    let (field, fix) = match err {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            "AMQP_URL",
            "name the broker as its certificate does, or give it one for this name",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => (
            "AMQP_CA_FILE",
            "set it to the certificate of the authority that signed the broker's",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnknownCA,
        ) => (
            "AMQP_CERT_FILE",
            "set it and AMQP_KEY_FILE to a certificate that the broker takes",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => return BrokerFault::Away(format!("{err}: the broker needs a new one")),
        _ => return BrokerFault::Away(format!("TLS: {err}")),
    };
    BrokerFault::Misconfigured(ConfigError::new(field, format!("TLS: {err}"), fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_only_where_no_waiting_helps() {
        for text in [
            "NOT_ALLOWED - vhost orders not found",
            "NOT_ALLOWED - access to vhost 'orders' refused for user 'relay'",
        ] {
            assert!(is_final(text), "{text}");
        }
        for text in [
            "NOT_ALLOWED - access to vhost 'orders' refused for user 'relay': connection limit (5) is reached",
            "NOT_ALLOWED - connection refused for user 'relay': user connection limit (5) is reached",
            "NOT_ALLOWED - connection refused: node connection limit (5) is reached",
            "NOT_ALLOWED - access to vhost 'orders' refused for user 'relay': vhost 'orders' is down",
            "NOT_ALLOWED - access to vhost 'orders' refused for user 'relay', backend http returned an error: timeout",
            "NOT_ALLOWED - number of channels opened for user 'relay' has reached the maximum allowed user limit of (5)",
        ] {
            assert!(!is_final(text), "{text}");
        }
    }

    #[test]
    fn an_expired_certificate_is_waited_for_and_other_refusals_name_the_setting() {
        let field = |err: rustls::Error| {
            let err = std::io::Error::new(std::io::ErrorKind::InvalidData, err);
            match classify(&err.into()) {
                BrokerFault::Misconfigured(config) => config.field,
                BrokerFault::Away(text) => text,
            }
        };
        let invalid = rustls::Error::InvalidCertificate;
        let alert = rustls::Error::AlertReceived;
        assert_eq!(
            field(invalid(CertificateError::NotValidForName)),
            "AMQP_URL"
        );
        assert_eq!(
            field(invalid(CertificateError::UnknownIssuer)),
            "AMQP_CA_FILE"
        );
        assert_eq!(
            field(alert(AlertDescription::CertificateRequired)),
            "AMQP_CERT_FILE"
        );
        assert!(field(invalid(CertificateError::Expired)).contains("needs a new one"));
        assert!(field(alert(AlertDescription::InternalError)).contains("TLS: "));
    }
}
