package vault

// Credential is a named value. Names are unique in a vault.
type Credential struct {
	Name   string `json:"name"`
	Source Source `json:"source"`
}

// Source says where the value of a credential comes from.
type Source struct {
	// Type is "inline"; empty means that.
	Type  string `json:"type"`
	Value Secret `json:"value"`
}

// SourceInline is the one kind of source.
const SourceInline = "inline"

// Binding says into which requests a credential goes, and how. Names are
// unique in a vault.
type Binding struct {
	Name  string `json:"name"`
	Match Match  `json:"match"`
	Auth  Auth   `json:"auth"`
}

// Match chooses requests. All of its parts must fit. After validation no part
// is empty: the defaults are filled in.
type Match struct {
	// Schemes are "https" (the default) and "http".
	Schemes []string `json:"schemes,omitempty"`
	// Ports default to 443, or to 80 when only http is asked for.
	Ports []int `json:"ports,omitempty"`
	// Hosts are full names, or "*." and a full name for all below it.
	Hosts []string `json:"hosts"`
	// Methods default to GET, POST, PUT, PATCH and DELETE.
	Methods []string `json:"methods,omitempty"`
	// Paths are exact, or end in "*" for all that begin so. Default "/*".
	Paths []string `json:"paths,omitempty"`
}

// The kinds of Auth.
const (
	AuthBearer        = "bearer"
	AuthBasic         = "basic"
	AuthAPIKey        = "apiKey"
	AuthCustomHeaders = "customHeaders"
	AuthPassthrough   = "passthrough"
)

// Auth says how credentials are put into a request.
type Auth struct {
	Type string `json:"type"`
	// Credential is named by all types but customHeaders and passthrough.
	Credential string `json:"credential,omitempty"`
	// Name is the header of apiKey.
	Name string `json:"name,omitempty"`
	// Headers are those of customHeaders.
	Headers       []Header       `json:"headers,omitempty"`
	Substitutions []Substitution `json:"substitutions,omitempty"`
}

// Header is one header of customHeaders.
type Header struct {
	Name       string `json:"name"`
	Credential string `json:"credential"`
}

// The places of a Substitution.
const (
	InHeader = "header"
	InQuery  = "query"
	InPath   = "path"
	InBody   = "body"
)

// Substitution puts a credential where the sandbox wrote a placeholder.
type Substitution struct {
	Credential  string   `json:"credential"`
	Placeholder string   `json:"placeholder"`
	In          []string `json:"in"`
}

// CreateRequest is the body of a create.
type CreateRequest struct {
	Credentials []Credential `json:"credentials"`
	Bindings    []Binding    `json:"bindings"`
}

// PatchRequest is the body of a patch. All of it happens, or nothing.
type PatchRequest struct {
	// ExpectedRevision, when given, must be the present revision.
	ExpectedRevision *int64        `json:"expectedRevision"`
	Credentials      CredentialSet `json:"credentials"`
	Bindings         BindingSet    `json:"bindings"`
}

// CredentialSet changes credentials.
type CredentialSet struct {
	Add     []Credential `json:"add"`
	Replace []Credential `json:"replace"`
	Delete  []string     `json:"delete"`
}

// BindingSet changes bindings.
type BindingSet struct {
	Add     []Binding `json:"add"`
	Replace []Binding `json:"replace"`
	Delete  []string  `json:"delete"`
}

// State is what callers see of a vault: no values, sorted by name.
type State struct {
	Revision    int64             `json:"revision"`
	Credentials []CredentialState `json:"credentials"`
	Bindings    []BindingState    `json:"bindings"`
}

// CredentialState is a credential without its value. Revision is that of the
// vault when it last changed.
type CredentialState struct {
	Name       string `json:"name"`
	SourceType string `json:"sourceType"`
	Revision   int64  `json:"revision"`
}

// BindingState is a binding as callers see it.
type BindingState struct {
	Name     string    `json:"name"`
	Revision int64     `json:"revision"`
	Match    Match     `json:"match"`
	Auth     AuthState `json:"auth"`
}

// AuthState is the kind of an Auth, and the header of an apiKey.
type AuthState struct {
	Type string `json:"type"`
	Name string `json:"name,omitempty"`
}
