// Package schedule reads the schedules of periodic hooks: cron expressions of
// five fields, their names such as @hourly, and @every with a span. The server
// uses it to refuse a schedule when it is given, and execd to follow it, so
// that both always agree.
package schedule
