// Package ociwriter makes OCI images out of tar streams and writes them as an
// OCI image layout directory or archive, without a daemon or a registry. The
// starter image and the images of tests are made with it.
package ociwriter
