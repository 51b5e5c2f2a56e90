// Package api is the wire contract of the control plane: lifecycle.yaml
// describes it, and the Go types are generated from that document. Package
// api/execd is the same for the daemon inside each sandbox. Change the
// document, then run `go generate ./api`; a test fails while the generated
// files and their document differ.
package api

import _ "embed"

//go:generate go tool oapi-codegen -config lifecycle.codegen.yaml -o lifecycle.gen.go lifecycle.yaml
//go:generate go tool oapi-codegen -config execd.codegen.yaml -o execd/execd.gen.go execd.yaml
//go:generate go run ./internal/openapijson -o lifecycle.gen.json lifecycle.yaml

// LifecycleJSON is lifecycle.yaml as JSON, as the server shows it at
// /openapi.json. It must not be changed.
//
//go:embed lifecycle.gen.json
var LifecycleJSON []byte
