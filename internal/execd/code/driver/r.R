# The driver for R. The user's code is evaluated in the global environment; what
# the driver needs is in a local one.

local({
  orders <- file("/dev/fd/3", "rb", raw = TRUE)
  reports <- file("/dev/fd/4", "wb", raw = TRUE)
  acks <- file("/dev/fd/7", "rb", raw = TRUE)
  max_text <- 2^20
  max_picture <- 3e6
  run <- 0L
  count <- 0L
  plots <- tempfile("plots")

  quote_json <- function(text) {
    text <- enc2utf8(paste(text, collapse = "\n"))
    if (!validUTF8(text)) text <- iconv(text, "latin1", "UTF-8")
    code <- utf8ToInt(text)
    code <- code[!is.na(code)]
    part <- vapply(code, intToUtf8, "")
    plain <- code >= 32 & code < 127 & code != 34 & code != 92
    high <- code > 65535
    part[!plain & !high] <- sprintf("\\u%04x", code[!plain & !high])
    rest <- code[high] - 65536
    part[high] <- sprintf("\\u%04x\\u%04x", 55296 + rest %/% 1024, 56320 + rest %% 1024)
    paste0("\"", paste(part, collapse = ""), "\"")
  }

  send <- function(kind, members = "") {
    line <- sprintf("{\"t\":\"%s\",\"n\":%d,\"count\":%d", kind, run, count)
    writeBin(charToRaw(paste0(line, members, "}\n")), reports)
    flush(reports)
  }

  base64 <- function(bytes) {
    alphabet <- c(LETTERS, letters, 0:9, "+", "/")
    missing <- (3 - length(bytes) %% 3) %% 3
    b <- matrix(as.integer(c(bytes, raw(missing))), nrow = 3)
    sextets <- rbind(b[1, ] %/% 4, b[1, ] %% 4 * 16 + b[2, ] %/% 16, b[2, ] %% 16 * 4 + b[3, ] %/% 64, b[3, ] %% 64)
    text <- alphabet[sextets + 1]
    if (missing > 0) text[length(text) + 1 - seq_len(missing)] <- "="
    paste(text, collapse = "")
  }

  # Pictures that the code has drawn.
  show_plots <- function() {
    grDevices::graphics.off()
    for (name in sort(list.files(plots, full.names = TRUE))) {
      size <- file.size(name)
      if (size > 0 && size <= max_picture) {
        data <- base64(readBin(name, "raw", size))
        send("display", paste0(",\"data\":{\"text/plain\":\"plot\",\"image/png\":\"", data, "\"}"))
        readBin(acks, "raw", 1)
      } else if (size > max_picture) {
        message("[a plot of ", size, " bytes was left out: at most ", max_picture, " can be shown]")
      }
      unlink(name)
    }
  }

  describe <- function(e, calls) {
    if (inherits(e, "interrupt")) {
      return(",\"ename\":\"KeyboardInterrupt\",\"evalue\":\"the code was interrupted\",\"traceback\":[\"KeyboardInterrupt\"]")
    }
    message <- conditionMessage(e)
    call <- conditionCall(e)
    head <- if (is.null(call)) paste0("Error: ", message) else paste0("Error in ", deparse(call, nlines = 1)[1], ": ", message)
    lines <- c(head, if (length(calls) > 0) "Traceback (most recent call last):", calls)
    kind <- class(e)[1]
    name <- if (kind %in% c("simpleError", "error")) "Error" else kind
    paste0(",\"ename\":", quote_json(name), ",\"evalue\":", quote_json(message), ",\"traceback\":[",
           paste(vapply(lines, quote_json, "", USE.NAMES = FALSE), collapse = ","), "]")
  }

  # The calls of the user's code, without those of the driver around it.
  user_calls <- function(all) {
    texts <- vapply(all, function(call) deparse(call, nlines = 1)[1], "")
    first <- max(which(texts == "eval(piece, globalenv())"), 0)
    texts <- texts[seq_along(texts) > first + 1]
    texts <- texts[!grepl("^(\\.handleSimpleError|h\\(simpleError)", texts)]
    utils::head(sprintf("    %s", substr(texts, 1, 500)), 100)
  }

  execute <- function(text) {
    pieces <- parse(text = text, keep.source = TRUE, srcfile = srcfilecopy(sprintf("<cell %d>", count), strsplit(text, "\n")[[1]]))
    for (i in seq_along(pieces)) {
      piece <- pieces[[i]]
      shown <- withVisible(eval(piece, globalenv()))
      if (!shown$visible) next
      if (i < length(pieces)) {
        print(shown$value)
      } else if (!is.null(shown$value)) {
        said <- paste(utils::capture.output(print(shown$value)), collapse = "\n")
        if (nchar(said) > max_text) said <- paste0(substr(said, 1, max_text), "... (", nchar(said), " characters in all)")
        flush(stdout())
        # What draws when it is printed has drawn now.
        show_plots()
        send("result", paste0(",\"data\":{\"text/plain\":", quote_json(said), "}"))
      }
    }
    show_plots()
  }

  perform <- function(text) {
    calls <- character()
    tryCatch(
      withCallingHandlers({
        send("busy")
        execute(text)
        NULL
      }, error = function(e) {
        calls <<- user_calls(sys.calls())
      }, warning = function(w) {
        call <- conditionCall(w)
        base::message("Warning", if (!is.null(call)) paste0(" in ", deparse(call, nlines = 1)[1]), ": ", conditionMessage(w))
        invokeRestart("muffleWarning")
      }),
      interrupt = function(e) describe(e),
      error = function(e) describe(e, calls))
  }

  read_line <- function() {
    bytes <- raw()
    repeat {
      b <- readBin(orders, "raw", 1)
      if (length(b) == 0) base::quit("no")
      if (b == as.raw(10)) return(rawToChar(bytes))
      bytes <- c(bytes, b)
    }
  }

  read_bytes <- function(size) {
    parts <- list()
    while (size > 0) {
      part <- readBin(orders, "raw", size)
      if (length(part) == 0) base::quit("no")
      parts[[length(parts) + 1]] <- part
      size <- size - length(part)
    }
    unlist(parts)
  }

  dir.create(plots)
  options(device = function(...) {
    grDevices::png(file.path(plots, sprintf("%d-%%04d.png", length(list.files(plots)))), width = 720, height = 480)
  }, error = NULL, warn = 0, menu.graphics = FALSE)
  send("ready")
  repeat {
    tryCatch({
      head <- strsplit(read_line(), " ")[[1]]
      text <- rawToChar(read_bytes(as.integer(head[3])))
      Encoding(text) <- "UTF-8"
      run <- as.integer(head[2])
      count <- count + 1L
      failure <- perform(text)
      flush(stdout())
      if (is.null(failure)) send("done") else send("error", failure)
    }, interrupt = function(e) NULL)
  }
})
