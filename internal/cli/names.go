package cli

import (
	"slices"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

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

func isGone(err error) bool { return client.IsNotFound(err) }

// sortedNames returns the names of headers in the order of the alphabet.
func sortedNames(m map[string]string) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// nonNil makes an empty list of none, which is "[]" and not "null" in JSON.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// subcommand is the check of a command that only holds others.
func subcommand(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	try := cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(given[0]); len(near) > 0 {
		try = cmd.CommandPath() + " " + near[0]
	}
	return &UsageError{Message: "\"" + given[0] + "\" is not a command of " + cmd.CommandPath(), Try: try}
}
