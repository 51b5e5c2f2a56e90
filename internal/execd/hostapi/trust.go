package hostapi

const (
	// TrustPath: POST Trust → 200 when everything that starts from now on finds
	// the files and the variables. Doing it again replaces both. 422 Error with
	// CodeTrustUnwritable when a file can't be written; variables are unchanged
	// then.
	TrustPath = PathPrefix + "/trust"
	// MaxTrust bounds the request, in bytes: the roots of an image, twice, in
	// base64.
	MaxTrust = 32 << 20
	// CodeTrustUnwritable is the code of a refusal.
	CodeTrustUnwritable = "TRUST_UNWRITABLE"
)

// Trust tells a claimed sandbox which certificates its programs are to trust.
type Trust struct {
	Files []TrustFile `json:"files"`
	// Env is added to the environment of the claim.
	Env map[string]string `json:"env"`
}

// TrustFile is one file for everybody in the sandbox to read.
type TrustFile struct {
	// Path is absolute.
	Path    string `json:"path"`
	Content []byte `json:"content"`
}
