//! The OpenAPI 3.1 document, made of the declared endpoints.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItemBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, License, OpenApi, OpenApiBuilder, PathsBuilder, Ref, Required,
    ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema, openapi};

use crate::endpoint::{ALL, Body, Caller, Endpoint};
use crate::problem::{MEDIA_TYPE, Problem, ProblemCode};

/// The document.
pub fn document() -> OpenApi {
    let mut schemas = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut schemas);
    let mut paths = PathsBuilder::new();
    for endpoint in ALL {
        for body in [endpoint.request, endpoint.response].into_iter().flatten() {
            (body.collect)(&mut schemas);
        }
        let item = PathItemBuilder::new()
            .operation(method(endpoint), operation(endpoint))
            .build();
        paths = paths.path(endpoint.path, item);
    }
    let mut components = ComponentsBuilder::new();
    for (name, schema) in schemas {
        components = components.schema(name, schema);
    }
    let bearer = |description: &str| {
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some(description))
                .build(),
        )
    };
    let components = components
        .security_scheme("operator", bearer("The operator token of the service."))
        .security_scheme("agent", bearer("The credential that the agent got when it enrolled."))
        .build();
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    let info = InfoBuilder::new()
        .title("nftfleet")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Moves fleets of Kubernetes clusters from kube-proxy's iptables and IPVS modes to nftables, without dropping a \
             connection. Errors are application/problem+json (RFC 9457) with a code from a closed list.",
        ))
        .license(Some(license))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components))
        .build()
}

/// The document as it stands in `openapi.json`: pretty JSON with a line feed at its end.
///
/// # Errors
/// None in practice: every key is text.
pub fn document_json() -> Result<String, serde_json::Error> {
    Ok(format!("{}\n", serde_json::to_string_pretty(&document())?))
}

fn method(endpoint: &Endpoint) -> HttpMethod {
    match endpoint.method.as_str() {
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

fn operation(endpoint: &Endpoint) -> openapi::path::Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(endpoint.id))
        .summary(Some(endpoint.summary))
        .tag(if endpoint.path.starts_with("/agent/") {
            "agents"
        } else {
            "operators"
        });
    operation = match endpoint.caller {
        Caller::Anyone => operation,
        Caller::Operator => operation.security(SecurityRequirement::new::<_, [&str; 0], &str>("operator", [])),
        Caller::Agent => operation.security(SecurityRequirement::new::<_, [&str; 0], &str>("agent", [])),
    };
    for parameter in parameters(endpoint) {
        operation = operation.parameter(parameter);
    }
    if let Some(body) = endpoint.request {
        let request = RequestBodyBuilder::new().required(Some(Required::True)).content(
            "application/json",
            ContentBuilder::new().schema(Some(reference(body))).build(),
        );
        operation = operation.request_body(Some(request.build()));
    }
    let mut success = ResponseBuilder::new().description("Success.");
    if let Some(body) = endpoint.response {
        success = success.content(
            "application/json",
            ContentBuilder::new().schema(Some(reference(body))).build(),
        );
    }
    operation = operation.response(endpoint.status.to_string(), success.build());
    for (status, codes) in by_status(&endpoint.problems()) {
        let names: Vec<String> = codes
            .iter()
            .map(|c| format!("`{}`: {}.", c.as_str(), c.title()))
            .collect();
        let problem = Ref::from_schema_name(Problem::name());
        let response = ResponseBuilder::new()
            .description(names.join(" "))
            .content(MEDIA_TYPE, ContentBuilder::new().schema(Some(problem)).build());
        operation = operation.response(status.to_string(), response.build());
    }
    operation.build()
}

fn reference(body: Body) -> Ref {
    Ref::from_schema_name((body.name)())
}

fn by_status(codes: &[ProblemCode]) -> std::collections::BTreeMap<u16, Vec<ProblemCode>> {
    let mut grouped = std::collections::BTreeMap::<u16, Vec<ProblemCode>>::new();
    for code in codes {
        grouped.entry(code.status()).or_default().push(*code);
    }
    grouped
}

fn parameters(endpoint: &Endpoint) -> Vec<Parameter> {
    let of_type = |kind: Type| ObjectBuilder::new().schema_type(SchemaType::Type(kind)).build();
    let path = endpoint
        .path
        .split('/')
        .filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(of_type(Type::String)))
                .build()
        });
    let query = endpoint.query.iter().map(|q| {
        ParameterBuilder::new()
            .name(q.name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(q.description))
            .schema(Some(of_type(if q.is_number { Type::Integer } else { Type::String })))
            .build()
    });
    let if_match = endpoint.if_match.then(|| {
        ParameterBuilder::new()
            .name("If-Match")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("The resource's `ETag`: act only if it has not changed since."))
            .schema(Some(of_type(Type::String)))
            .build()
    });
    path.chain(query).chain(if_match).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_document_is_the_generated_one() {
        let checked_in = include_str!("../openapi.json");
        let generated = document_json().unwrap();
        assert!(
            checked_in == generated,
            "openapi.json has drifted: run `make openapi` and commit what it writes"
        );
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let json = serde_json::to_value(document()).unwrap();
        let mut references = Vec::new();
        collect(&json, &mut references);
        assert!(references.len() > 50);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(json.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    fn collect(value: &serde_json::Value, references: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("$ref", serde_json::Value::String(to)) => references.push(to.clone()),
                        _ => collect(value, references),
                    }
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|v| collect(v, references)),
            _ => {}
        }
    }
}
