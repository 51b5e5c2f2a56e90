package cli

import "github.com/distribution/reference"

// familiar shortens "docker.io/library/python:3.11" to "python:3.11".
func familiar(name string) string {
	if ref, err := reference.ParseNormalizedNamed(name); err == nil {
		return reference.FamiliarString(ref)
	}
	return name
}

// normal is the full form of an image's name, with its tag.
func normal(name string) string {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return ref.String()
}
